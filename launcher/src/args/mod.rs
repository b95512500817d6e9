//! The flags and their environment twins, as typed: strings that nobody has checked yet (`config` does).
//!
//! The only place of the launcher that reads the environment. A variable that is set but empty counts as unset.

mod devices;
mod http;
pub mod legacy;
mod limits;
mod model;
mod output;
mod surroundings;

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args as _, Command, FromArgMatches as _};

pub use devices::DeviceArgs;
pub use http::HttpArgs;
pub use limits::LimitArgs;
pub use model::ModelArgs;
pub use output::OutputArgs;
pub use surroundings::Surroundings;

/// Everything the user said, and what the machine looks like.
#[derive(Debug)]
pub struct Args {
    pub flags: Flags,
    /// Legacy flags that were given with another value than their default, with that value.
    pub legacy: Vec<(&'static legacy::LegacyFlag, String)>,
    /// Ids of the flags that were typed on the command line, in contrast to the environment.
    pub typed: BTreeSet<String>,
    /// Every environment variable that is the twin of a flag. Children get flags, never these.
    pub twins: Vec<OsString>,
    pub surroundings: Surroundings,
}

/// The flags that mean something, by subject.
#[derive(clap::Args, Debug)]
pub struct Flags {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub devices: DeviceArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Reads a command line (the program's name first) and the environment. An error prints itself and knows its exit code;
/// asking for help is such an error.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
    let command = command();
    let twins = command
        .get_arguments()
        .filter_map(|arg| arg.get_env().map(OsString::from))
        .collect();
    let matches = ignore_empty_variables(command).try_get_matches_from(argv)?;
    let typed = matches
        .ids()
        .filter(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine))
        .map(|id| id.to_string())
        .collect();
    Ok(Args {
        flags: Flags::from_arg_matches(&matches)?,
        legacy: given_legacy_flags(&matches),
        typed,
        twins,
        surroundings: Surroundings::look(),
    })
}

fn command() -> Command {
    let command = Command::new("text-gen-launcher")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves a language model over HTTP: starts and watches one router and one shard per device");
    Flags::augment_args(command)
        .next_help_heading("Accepted for compatibility")
        .args(legacy::arguments())
        // A negative number is a wrong value, which `config` reports with the others, not an unknown flag.
        .mut_args(|arg| {
            let takes_value = arg.get_action().takes_values();
            arg.allow_negative_numbers(takes_value)
        })
}

fn ignore_empty_variables(command: Command) -> Command {
    command.mut_args(|arg| {
        let is_empty = arg
            .get_env()
            .and_then(std::env::var_os)
            .is_some_and(|value| value.is_empty());
        if is_empty {
            arg.env(None::<&'static str>)
        } else {
            arg
        }
    })
}

fn given_legacy_flags(matches: &ArgMatches) -> Vec<(&'static legacy::LegacyFlag, String)> {
    let mut given = Vec::new();
    for flag in legacy::FLAGS {
        if let Some(value) = flag.value(matches)
            && Some(value.as_str()) != flag.default
        {
            given.push((flag, value));
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_flags_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_environment_twin() {
        let without_twin: Vec<String> = command()
            .get_arguments()
            .filter(|arg| !arg.is_hide_set() && arg.get_env().is_none())
            .map(|arg| arg.get_id().to_string())
            .collect();
        // Like TGI's --env; ENV is set for other reasons on many machines.
        assert_eq!(without_twin, ["env"]);
    }
}
