//! `text-gen-router`: see the library crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    text_gen_router::main()
}
