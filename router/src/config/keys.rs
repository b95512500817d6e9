//! Where API keys come from: flags, the environment and a file. A file has one key a line, alone or behind a name that metrics may
//! show (`name:key` or `name key`); blank lines and lines that begin with `#` are nothing. No message here ever repeats a key.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::sleep;

use crate::types::ApiKey;

/// Between two looks at the file.
const FILE_INTERVAL: Duration = Duration::from_secs(2);
const MAX_NAME_BYTES: usize = 64;

/// Everything that was said about keys, so that it can be read again.
#[derive(Clone, Debug)]
pub struct KeySource {
    given: Vec<ApiKey>,
    file: Option<PathBuf>,
}

impl KeySource {
    /// `plain` are whole keys; `lines` is text in the format of the file.
    pub(super) fn new(plain: &[String], lines: &str, file: Option<PathBuf>) -> (Self, Vec<String>) {
        let mut given = Vec::new();
        let mut mistakes = Vec::new();
        for key in plain {
            given.push(ApiKey {
                name: unnamed(given.len()),
                key: key.clone(),
            });
            if !is_sendable(key) {
                let mistake = "--api-key is empty or holds characters that no header can carry; give letters and digits";
                mistakes.push(mistake.to_owned());
            }
        }
        let (more, wrong) = parse(lines, given.len(), "API_KEYS");
        given.extend(more);
        mistakes.extend(wrong);
        (Self { given, file }, mistakes)
    }

    /// All keys as they are now; none where none were asked for.
    pub fn read(&self) -> Result<Vec<ApiKey>, Vec<String>> {
        let mut keys = self.given.clone();
        if let Some(path) = &self.file {
            let place = path.display().to_string();
            let unreadable = |error| vec![format!("cannot read --api-key-file {place}: {error}")];
            let text = std::fs::read_to_string(path).map_err(unreadable)?;
            let (more, mistakes) = parse(&text, keys.len(), &place);
            if !mistakes.is_empty() {
                return Err(mistakes);
            }
            // Without this an empty file would open the server to everybody.
            if more.is_empty() {
                return Err(vec![format!("--api-key-file {place} holds no key")]);
            }
            keys.extend(more);
        }
        let mut seen = HashSet::new();
        match keys.iter().find(|key| !seen.insert(&key.key)) {
            Some(twice) => Err(vec![format!(
                "the API key named {:?} is given twice; leave one of them away",
                twice.name
            )]),
            None => Ok(keys),
        }
    }

    /// Hands on the keys each time the file has changed. A file with a mistake changes nothing. Never returns.
    pub async fn follow(self, keys: watch::Sender<Vec<ApiKey>>) -> std::convert::Infallible {
        let mut seen = self.file_state();
        loop {
            sleep(FILE_INTERVAL).await;
            match self.read_if_changed(&mut seen) {
                None => {}
                Some(Ok(read)) => {
                    tracing::info!("read {} API keys", read.len());
                    keys.send_replace(read);
                }
                Some(Err(mistakes)) => {
                    for mistake in mistakes {
                        tracing::error!("the API keys stay as they were: {mistake}");
                    }
                }
            }
        }
    }

    fn read_if_changed(
        &self,
        seen: &mut Option<FileState>,
    ) -> Option<Result<Vec<ApiKey>, Vec<String>>> {
        let now = self.file_state();
        if now == *seen {
            return None;
        }
        *seen = now;
        Some(self.read())
    }

    fn file_state(&self) -> Option<FileState> {
        let metadata = std::fs::metadata(self.file.as_ref()?).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }
}

/// What changes when a file is written or replaced: time and length.
type FileState = (SystemTime, u64);

fn unnamed(idx: usize) -> String {
    format!("key-{}", idx + 1)
}

/// Keys, and what is wrong with lines. `num_before` keys were counted already.
fn parse(text: &str, num_before: usize, place: &str) -> (Vec<ApiKey>, Vec<String>) {
    let mut keys = Vec::new();
    let mut mistakes = Vec::new();
    for (idx, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let is_border = |letter: char| letter == ':' || letter.is_whitespace();
        let (name, key) = match line.split_once(is_border) {
            Some((name, key)) => (name.to_owned(), key.trim()),
            None => (unnamed(num_before + keys.len()), line),
        };
        if is_name(&name) && is_sendable(key) {
            keys.push(ApiKey {
                name,
                key: key.to_owned(),
            });
        } else {
            mistakes.push(format!(
                "line {} of {place} is no API key: write the key alone, or name:key with a name of letters, digits, '.', '_' and '-'",
                idx + 1
            ));
        }
    }
    (keys, mistakes)
}

fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(is_plain)
}

fn is_sendable(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_and_keys(text: &str) -> Vec<(String, String)> {
        let (keys, mistakes) = parse(text, 0, "test");
        assert_eq!(mistakes, Vec::<String>::new());
        keys.into_iter().map(|key| (key.name, key.key)).collect()
    }

    fn pair(name: &str, key: &str) -> (String, String) {
        (name.to_owned(), key.to_owned())
    }

    #[test]
    fn a_line_is_a_key_alone_or_behind_its_name() {
        let text = "# clients\r\n\nplain\n  alice:a:b  \nbob\t  c#d\n#out:side";
        let expected = [
            pair("key-1", "plain"),
            pair("alice", "a:b"),
            pair("bob", "c#d"),
        ];
        assert_eq!(names_and_keys(text), expected);
    }

    #[test]
    fn a_line_that_is_no_key_is_named_by_its_number_and_never_repeated() {
        for line in ["a b c", ":secret", "alice:", "al/ice:secret", "sécret"] {
            let (keys, mistakes) = parse(&format!("good\n{line}"), 0, "keys.txt");
            assert_eq!((keys.len(), mistakes.len()), (1, 1), "{line}");
            assert!(mistakes[0].starts_with("line 2 of keys.txt"), "{line}");
            assert!(!mistakes[0].contains("cret"), "{}", mistakes[0]);
        }
    }

    #[test]
    fn keys_of_all_places_are_joined_and_none_is_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "alice:one\ntwo").unwrap();
        let (source, mistakes) =
            KeySource::new(&["a,b".to_owned()], "eve:three", Some(path.clone()));
        assert!(mistakes.is_empty());
        let keys = source.read().unwrap();
        let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["key-1", "eve", "alice", "key-4"]);
        std::fs::write(&path, "alice:three").unwrap();
        assert!(source.read().unwrap_err()[0].contains("\"alice\" is given twice"));
    }

    #[test]
    fn a_file_without_keys_does_not_open_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        for text in ["", "# nobody\n"] {
            std::fs::write(&path, text).unwrap();
            let (source, _) = KeySource::new(&[], "", Some(path.clone()));
            assert!(source.read().unwrap_err()[0].contains("holds no key"));
        }
        let (source, _) = KeySource::new(&[], "", Some(folder.path().join("missing")));
        assert!(source.read().unwrap_err()[0].contains("missing"));
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_missing_one_is_a_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "first").unwrap();
        let (source, _) = KeySource::new(&[], "", Some(path.clone()));
        let mut seen = source.file_state();
        assert_eq!(source.read_if_changed(&mut seen), None);
        std::fs::write(&path, "second-key").unwrap();
        let read = source.read_if_changed(&mut seen).unwrap().unwrap();
        assert_eq!(read[0].key, "second-key");
        assert_eq!(source.read_if_changed(&mut seen), None);
        std::fs::remove_file(&path).unwrap();
        assert!(source.read_if_changed(&mut seen).unwrap().is_err());
        assert_eq!(source.read_if_changed(&mut seen), None);
    }
}
