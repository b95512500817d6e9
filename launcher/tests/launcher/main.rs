//! The launcher as it runs: a real process with real children, which are small shell scripts.
//!
//! The test program plays the launcher itself, in a process of its own (`the_launcher_itself`).

mod failure;
mod flags;
mod logs;
mod stage;
mod start;
mod stop;

/// Not a test: what `Stage::launch` starts. Takes its command line from a variable, since the test harness has its own.
#[test]
#[ignore = "the other tests start it, as the launcher"]
#[allow(
    clippy::disallowed_methods,
    reason = "this is the launcher's main function"
)]
fn the_launcher_itself() {
    let line = std::env::var(stage::ARGV).expect("the command line is set");
    let argv = std::iter::once("text-gen-launcher").chain(line.lines());
    std::process::exit(text_gen_launcher::launch(argv.map(Into::into)).into());
}
