//! Flags of TGI that have lost their meaning, or have none yet. They are accepted, so that a deployment moves over by changing
//! the image, and each says what replaces it. A flag that would change what is served is refused: ignoring it would be a lie.

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, ArgMatches};

/// One flag: its name, and what becomes of it.
#[derive(Debug)]
pub struct LegacyFlag {
    /// Without the dashes; the environment twin is the same in capitals.
    pub name: &'static str,
    pub takes_value: bool,
    /// TGI's own default: given like this, the flag says nothing.
    pub default: Option<&'static str>,
    /// A value that asks for exactly what text-gen does.
    pub harmless: Option<&'static str>,
    pub verdict: Verdict,
}

/// What happens when the flag is given. The text says why, and what to do.
#[derive(Debug)]
pub enum Verdict {
    Warn(&'static str),
    Refuse(&'static str),
}

use Verdict::{Refuse, Warn};

const fn flag(name: &'static str, default: Option<&'static str>, verdict: Verdict) -> LegacyFlag {
    LegacyFlag {
        name,
        takes_value: true,
        default,
        harmless: None,
        verdict,
    }
}

const fn switch(name: &'static str, verdict: Verdict) -> LegacyFlag {
    LegacyFlag {
        name,
        takes_value: false,
        default: Some("false"),
        harmless: None,
        verdict,
    }
}

const fn harmless_as(value: &'static str, flag: LegacyFlag) -> LegacyFlag {
    LegacyFlag {
        name: flag.name,
        takes_value: flag.takes_value,
        default: flag.default,
        harmless: Some(value),
        verdict: flag.verdict,
    }
}

const NGROK: &str = "tunnels are not part of the server; run `ngrok http PORT` beside it";
const ONE_MACHINE: &str = "the shards of one machine meet through a file and need no port";
const CHUNKED: &str = "waiting requests join at every step, because prefill is always chunked; see --max-batch-prefill-tokens";
const NO_TRACES: &str = "traces are not exported yet";

/// All of them, in the order of TGI's own help.
pub static FLAGS: &[LegacyFlag] = &[
    flag(
        "speculate",
        None,
        Warn("speculation is not supported yet; tokens are the same without it, only slower"),
    ),
    switch(
        "trust-remote-code",
        Warn("code from a model's repository is never run; a model works without it or is refused"),
    ),
    flag("waiting-served-ratio", Some("0.3"), Warn(CHUNKED)),
    flag("max-waiting-tokens", Some("20"), Warn(CHUNKED)),
    flag(
        "prometheus-port",
        Some("9000"),
        Warn("metrics are served on /metrics of the HTTP port"),
    ),
    flag(
        "shard-uds-path",
        Some("/tmp/text-generation-server"),
        Warn("sockets lie in a private directory; set TMPDIR to move it"),
    ),
    flag("master-addr", Some("localhost"), Warn(ONE_MACHINE)),
    flag("master-port", Some("29500"), Warn(ONE_MACHINE)),
    switch(
        "disable-custom-kernels",
        Warn("there are no such kernels; see --attention"),
    ),
    flag("otlp-endpoint", None, Warn(NO_TRACES)),
    flag(
        "otlp-service-name",
        Some("text-generation-inference.router"),
        Warn(NO_TRACES),
    ),
    switch("ngrok", Warn(NGROK)),
    flag("ngrok-authtoken", None, Warn(NGROK)),
    flag("ngrok-edge", None, Warn(NGROK)),
    flag(
        "lora-adapters",
        None,
        Refuse(
            "adapters are not supported yet; remove the flag, or merge the adapter into its model",
        ),
    ),
    harmless_as(
        "off",
        flag(
            "usage-stats",
            Some("on"),
            Warn("usage statistics are never collected"),
        ),
    ),
];

/// The flags as clap knows them.
pub(super) fn arguments() -> impl Iterator<Item = Arg> {
    FLAGS.iter().map(LegacyFlag::argument)
}

impl LegacyFlag {
    fn argument(&self) -> Arg {
        let (Warn(text) | Refuse(text)) = self.verdict;
        let twin = self.name.to_uppercase().replace('-', "_");
        let arg = Arg::new(self.name)
            .long(self.name)
            .env(twin)
            .hide_env_values(true)
            .help(text);
        match self.takes_value {
            true => arg.value_name("VALUE").action(ArgAction::Set),
            false => arg
                .action(ArgAction::SetTrue)
                .value_parser(BoolishValueParser::new()),
        }
    }

    /// What the flag was set to, by the command line or the environment.
    pub(super) fn value(&self, matches: &ArgMatches) -> Option<String> {
        match self.takes_value {
            true => matches.get_one::<String>(self.name).cloned(),
            false => Some(matches.get_flag(self.name).to_string()),
        }
    }
}
