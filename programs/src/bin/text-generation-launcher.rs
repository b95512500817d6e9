//! `text-generation-launcher`: the launcher under the name that TGI users type.

use std::process::ExitCode;

fn main() -> ExitCode {
    text_gen_launcher::main()
}
