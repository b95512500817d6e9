//! A network may cut a stream anywhere. Every streaming route writes bytes that a reader of server-sent events understands the same
//! wherever they are cut.

use serde_json::json;

use super::*;

/// Reads events as the standard says, from bytes as they come. Written for this test and for nothing else.
#[derive(Default)]
struct Reader {
    line: Vec<u8>,
    name: String,
    data: Option<String>,
    events: Vec<(String, String)>,
}

impl Reader {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.line(std::str::from_utf8(&line).unwrap());
                }
                other => self.line.push(*other),
            }
        }
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            self.events
                .extend(self.data.take().map(|data| (name, data)));
            return;
        }
        let (field, value) = line.split_once(':').unwrap();
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => {}
            "event" => value.clone_into(&mut self.name),
            "data" => {
                assert!(self.data.is_none(), "an event has one line of data");
                self.data = Some(value.to_owned());
            }
            other => panic!("{other} is not used"),
        }
    }
}

fn read(pieces: &[&[u8]]) -> Vec<(String, String)> {
    let mut reader = Reader::default();
    pieces.iter().for_each(|piece| reader.push(piece));
    assert!(reader.line.is_empty() && reader.data.is_none());
    reader.events
}

#[tokio::test]
async fn a_stream_means_the_same_wherever_it_is_cut() {
    let server = greedy();
    let messages = json!([{"role": "user", "content": "☕ Hello"}]);
    for (path, body) in [
        (
            "/generate_stream",
            json!({"inputs": "def read_file(path):", "parameters": {"max_new_tokens": 5}}),
        ),
        (
            "/v1/completions",
            json!({"prompt": ["a", "def read_file(path):"], "max_tokens": 4, "stream": true, "echo": true}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "max_tokens": 5, "stream": true, "stream_options": {"include_usage": true}}),
        ),
        (
            "/v1/responses",
            json!({"input": messages, "max_output_tokens": 5, "stream": true}),
        ),
        (
            "/v1/messages",
            json!({"messages": messages, "max_tokens": 5, "stream": true}),
        ),
    ] {
        let reply = server.post(path, &body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        let bytes = reply.text.as_bytes();
        let whole = read(&[bytes]);
        assert!(whole.len() > 4, "{path}");
        for (_, data) in whole.iter().filter(|(_, data)| data != "[DONE]") {
            serde_json::from_str::<Value>(data).unwrap();
        }
        for cut in 0..=bytes.len() {
            let (before, after) = bytes.split_at(cut);
            assert_eq!(read(&[before, after]), whole, "{path} cut at {cut}");
        }
    }
}
