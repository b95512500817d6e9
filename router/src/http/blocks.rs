//! Pieces of a message grouped into blocks, for routes that answer with a list of them: reasoning, text and calls in the order in which
//! the model wrote them. A block ends where the next begins.

use crate::output::MessagePart;

/// What a block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    Text,
    Reasoning,
    /// Its pieces are the arguments.
    Call {
        name: String,
    },
}

/// What happens to the blocks of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum BlockEvent {
    Started(Block),
    /// More of the block that was started last.
    More(String),
    Ended,
}

#[derive(Default)]
pub struct Blocks {
    open: Option<Block>,
    any: bool,
}

impl Blocks {
    pub fn push(&mut self, part: MessagePart) -> Vec<BlockEvent> {
        match part {
            MessagePart::Content(text) => self.text(Block::Text, text),
            MessagePart::Reasoning(text) => self.text(Block::Reasoning, text),
            MessagePart::CallStart { name, .. } => self.start(Block::Call { name }),
            MessagePart::CallArguments { text, .. } => match &self.open {
                Some(Block::Call { .. }) => more(text),
                _ => Vec::new(),
            },
        }
    }

    /// The message has ended. One without any block gets an empty text.
    pub fn finish(&mut self) -> Vec<BlockEvent> {
        let mut events = Vec::new();
        if !self.any {
            events = self.start(Block::Text);
        }
        events.extend(self.open.take().map(|_| BlockEvent::Ended));
        events
    }

    fn text(&mut self, block: Block, text: String) -> Vec<BlockEvent> {
        let mut events = Vec::new();
        if text.is_empty() {
            return events;
        }
        if self.open.as_ref() != Some(&block) {
            events = self.start(block);
        }
        events.extend(more(text));
        events
    }

    fn start(&mut self, block: Block) -> Vec<BlockEvent> {
        self.any = true;
        let ended = self.open.replace(block.clone()).map(|_| BlockEvent::Ended);
        ended
            .into_iter()
            .chain([BlockEvent::Started(block)])
            .collect()
    }
}

fn more(text: String) -> Vec<BlockEvent> {
    if text.is_empty() {
        Vec::new()
    } else {
        vec![BlockEvent::More(text)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(parts: Vec<MessagePart>) -> Vec<BlockEvent> {
        let mut blocks = Blocks::default();
        let mut events: Vec<_> = parts
            .into_iter()
            .flat_map(|part| blocks.push(part))
            .collect();
        events.extend(blocks.finish());
        events
    }

    fn call(name: &str) -> Block {
        Block::Call { name: name.into() }
    }

    #[test]
    fn a_block_ends_where_the_next_begins() {
        use BlockEvent::{Ended, More, Started};
        let events = run(vec![
            MessagePart::Reasoning("hm".into()),
            MessagePart::Reasoning("m".into()),
            MessagePart::Content("a".into()),
            MessagePart::CallStart {
                call_idx: 0,
                name: "f".into(),
            },
            MessagePart::CallArguments {
                call_idx: 0,
                text: "{}".into(),
            },
            MessagePart::CallStart {
                call_idx: 1,
                name: "f".into(),
            },
        ]);
        let expected = [
            Started(Block::Reasoning),
            More("hm".into()),
            More("m".into()),
            Ended,
            Started(Block::Text),
            More("a".into()),
            Ended,
            Started(call("f")),
            More("{}".into()),
            Ended,
            Started(call("f")),
            Ended,
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn a_message_without_anything_is_one_empty_text() {
        let expected = [BlockEvent::Started(Block::Text), BlockEvent::Ended];
        assert_eq!(run(vec![]), expected);
        assert_eq!(run(vec![MessagePart::Content(String::new())]), expected);
    }
}
