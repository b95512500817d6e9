//! Splits a child's output into lines. Bytes that are not UTF-8 are replaced, the end of a very long line is cut off, and a last
//! line without an end counts.

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// Longest line, in bytes. What follows is skipped up to the line's end.
pub(super) const MAX_LINE_BYTES: usize = 64 * 1024;

pub(super) struct Lines<R> {
    reader: BufReader<R>,
    bytes: Vec<u8>,
    line: String,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader: BufReader::new(reader),
            bytes: Vec::new(),
            line: String::new(),
        }
    }

    /// The next line, without its end; None after the last, and when the stream fails.
    pub(super) async fn next(&mut self) -> Option<&str> {
        self.bytes.clear();
        let mut is_complete = false;
        let mut is_cut = false;
        while !is_complete {
            let chunk = self.reader.fill_buf().await.unwrap_or_default();
            if chunk.is_empty() {
                if self.bytes.is_empty() {
                    return None;
                }
                break;
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let content = &chunk[..end.unwrap_or(chunk.len())];
            let room = MAX_LINE_BYTES - self.bytes.len();
            is_cut |= content.len() > room;
            self.bytes
                .extend_from_slice(&content[..content.len().min(room)]);
            is_complete = end.is_some();
            let used = content.len() + usize::from(is_complete);
            self.reader.consume(used);
        }
        self.line = String::from_utf8_lossy(&self.bytes)
            .trim_end_matches('\r')
            .to_owned();
        if is_cut {
            self.line.push_str(" [cut]");
        }
        Some(&self.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn split(bytes: &[u8]) -> Vec<String> {
        let mut lines = Lines::new(bytes);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await {
            all.push(line.to_owned());
        }
        all
    }

    #[tokio::test]
    async fn a_last_line_without_end_counts() {
        assert_eq!(split(b"a\r\n\nb").await, ["a", "", "b"]);
        assert_eq!(split(b"a\n").await, ["a"]);
    }

    #[tokio::test]
    async fn invalid_bytes_are_replaced() {
        assert_eq!(split(b"a\xffb\n").await, ["a\u{fffd}b"]);
    }

    #[tokio::test]
    async fn a_very_long_line_is_cut_and_the_next_one_is_whole() {
        let long = "x".repeat(3 * MAX_LINE_BYTES);
        let lines = split(format!("{long}\nnext\n").as_bytes()).await;
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), MAX_LINE_BYTES + " [cut]".len());
        assert_eq!(lines[1], "next");
    }

    #[tokio::test]
    async fn a_line_of_exactly_the_longest_length_is_not_cut() {
        let longest = "x".repeat(MAX_LINE_BYTES);
        assert_eq!(split(format!("{longest}\n").as_bytes()).await, [longest]);
    }
}
