//! `text-gen-launcher`: see the library crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    text_gen_launcher::main()
}
