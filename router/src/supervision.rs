//! The line to the launcher: standard input. It brings the loading phase and the model, one line each, and its end means that the
//! launcher is gone, which ends the router too.

use std::path::PathBuf;

use anyhow::Context;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};
use tokio::sync::watch;

/// What the launcher has found out so far. `model_dir` comes once the folder is complete; the others may come later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    pub model_dir: Option<PathBuf>,
    pub model_id: Option<String>,
    pub revision: Option<String>,
}

/// Follows the launcher until it is gone.
///
/// Lines: `phase TEXT`, `model FOLDER`, `model-id NAME`, `revision COMMIT`. Others are ignored, so that the launcher may be newer.
pub async fn follow(
    input: impl AsyncBufRead + Unpin,
    announced: watch::Sender<Announced>,
    show_phase: impl Fn(String),
) -> anyhow::Result<()> {
    let mut lines = input.lines();
    while let Some(line) = lines
        .next_line()
        .await
        .context("cannot read from the launcher")?
    {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let rest = rest.to_string();
        match word {
            "phase" => show_phase(rest),
            "model" => announced.send_modify(|all| all.model_dir = Some(rest.into())),
            "model-id" => announced.send_modify(|all| all.model_id = Some(rest)),
            "revision" => announced.send_modify(|all| all.revision = Some(rest)),
            _ => tracing::warn!(word, "unknown line from the launcher"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn lines_are_taken_until_the_end() {
        let input = "phase downloading 3 of 10\nnews from tomorrow\nmodel /models/a b\nrevision abc\nmodel-id org/name\n";
        let (sender, receiver) = watch::channel(Announced::default());
        let phases = RefCell::new(Vec::new());
        let outcome = follow(input.as_bytes(), sender, |phase| {
            phases.borrow_mut().push(phase)
        })
        .await;
        assert!(outcome.is_ok());
        assert_eq!(phases.into_inner(), ["downloading 3 of 10"]);
        let expected = Announced {
            model_dir: Some("/models/a b".into()),
            model_id: Some("org/name".to_string()),
            revision: Some("abc".to_string()),
        };
        assert_eq!(*receiver.borrow(), expected);
    }
}
