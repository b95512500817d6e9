//! Finds the model: runs `text-gen-server resolve`, which downloads what is missing and answers with a directory.

use std::path::PathBuf;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use crate::child::{Child, Exit, SpawnError};
use crate::config::Config;
use crate::logs::{Logs, Source};

/// The answer is far smaller.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// Where the model's files are.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct Model {
    pub model_dir: PathBuf,
    /// Commit of the hub snapshot.
    pub revision: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The program has logged the reason.
    #[error("the model could not be found or downloaded: the search {0}")]
    Failed(Exit),
    #[error("the search for the model gave an answer that is not understood: {0}")]
    Answer(String),
}

/// Takes as long as a download takes. Dropping it kills the download; the next one goes on from there.
pub async fn resolve(
    config: &Config,
    command: Command,
    logs: &Logs,
) -> Result<Model, ResolveError> {
    tracing::info!(
        "Starting check and download process for {}",
        config.model.name()
    );
    let mut child = Child::spawn(command, Source::Resolver, logs, |_| {})?;
    let stdout = child.take_stdout();
    let (exit, answer) = tokio::join!(child.exited(), read_answer(stdout));
    if !exit.is_success() {
        return Err(ResolveError::Failed(exit));
    }
    let model = parse(&answer)?;
    tracing::info!(
        "Successfully downloaded weights for {}",
        config.model.name()
    );
    Ok(model)
}

async fn read_answer(stdout: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stdout) = stdout {
        // What could be read is judged below.
        let _ = stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last line counts; a library may have written something before it.
fn parse(answer: &str) -> Result<Model, ResolveError> {
    let line = answer
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    let model: Model =
        serde_json::from_str(line).map_err(|error| ResolveError::Answer(error.to_string()))?;
    let is_one_line = |text: &str| !text.contains(['\n', '\r']);
    if !is_one_line(&model.model_dir.to_string_lossy())
        || !model.revision.as_deref().is_none_or(is_one_line)
    {
        return Err(ResolveError::Answer(
            "a path or revision with a line break".to_owned(),
        ));
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_answer() {
        let model =
            parse("warming up\n{\"model_dir\":\"/m\",\"model_id\":\"a\",\"revision\":null}\n\n")
                .expect("it is right");
        assert_eq!(
            model,
            Model {
                model_dir: "/m".into(),
                revision: None
            }
        );
    }

    #[test]
    fn an_answer_that_could_forge_a_line_is_refused() {
        assert!(parse(r#"{"model_dir":"/m\nmodel /other","revision":null}"#).is_err());
        assert!(parse("").is_err());
    }
}
