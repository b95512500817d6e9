//! How a model writes what it thinks and what it calls into its text. These tables are the only place that knows a format: the grammar
//! is made from them and the parser follows them, so that neither can write what the other does not read.

/// What the text of an answer may hold beside content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageFormat {
    /// `None`: the model marks no reasoning.
    pub reasoning: Option<ReasoningFormat>,
    /// `None`: nothing can be called.
    pub calls: Option<CallFormat>,
}

/// Markers around the model's reasoning. They are tokens of their own in most vocabularies, and special in some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningFormat {
    pub start: &'static str,
    pub end: &'static str,
    /// The prompt ends with `start`: the answer begins in the middle of the reasoning.
    pub opened_by_prompt: bool,
}

/// Calls of the tools with these names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallFormat {
    pub format: ToolFormat,
    pub names: Vec<String>,
}

/// In which form a model was trained to write calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>\n{"name": .., "arguments": {..}}\n</tool_call>`, as Hermes and Qwen write it.
    Hermes,
    /// `{"name": .., "parameters": {..}}` in place of an answer, perhaps behind `<|python_tag|>`: Llama 3.
    Llama,
    /// `[TOOL_CALLS] [{"name": .., "arguments": {..}}]`: Mistral.
    MistralList,
    /// `[TOOL_CALLS]name[ARGS]{..}`: newer models of Mistral.
    MistralNamed,
    /// `<|tool_call|>[{"name": .., "arguments": {..}}]`: Granite 3.
    Granite,
    /// Arguments in a fenced block between markers: DeepSeek V3 and R1.
    DeepSeekFenced,
    /// The same markers without the fence: DeepSeek V3.1.
    DeepSeek,
    /// `{"function": {"_name": .., <the arguments>}}`, which TGI asked every model for; here for those without a form of their own.
    Tgi,
}

/// A part of a call's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    Text(&'static str),
    /// Any JSON whitespace when it is read; this when it is written, and a blank may be left out.
    Space(&'static str),
    /// Text that can be one token of the vocabulary, perhaps a special one.
    Mark(&'static str),
    /// A mark that may be missing.
    OptionalMark(&'static str),
    /// The tool's name.
    Name,
    /// The arguments: a JSON object.
    Arguments,
    /// The arguments without the opening brace, behind an entry of the same object.
    Members,
    /// The inside of a JSON string that is no call but the answer.
    Answer,
}

/// The text of all calls of an answer: `first call (between call)* last`.
pub struct CallSyntax {
    pub first: &'static [Piece],
    pub call: &'static [Piece],
    pub between: &'static [Piece],
    pub last: &'static [Piece],
    /// In place of calls, for forms in which all text is an object.
    pub answer: &'static [Piece],
    /// Calls may follow other text. Otherwise they are the whole answer.
    pub after_text: bool,
}

use Piece::{Answer, Arguments, Mark, Members, Name, OptionalMark, Space, Text};

/// `{"name": "..", "<key>": {..}}` with the given key and what surrounds it.
macro_rules! named_object {
    ([$($before:expr),*], $key:literal, [$($after:expr),*]) => {
        &[
            $($before,)*
            Text("{"), Space(""), Text("\"name\""), Space(""), Text(":"), Space(" "), Text("\""), Name, Text("\""),
            Space(""), Text(","), Space(" "), Text($key), Space(""), Text(":"), Space(" "), Arguments,
            Space(""), Text("}"),
            $($after,)*
        ]
    };
}

const HERMES: CallSyntax = CallSyntax {
    first: &[],
    call: named_object!(
        [Mark("<tool_call>"), Space("\n")],
        "\"arguments\"",
        [Space("\n"), Mark("</tool_call>")]
    ),
    between: &[Space("\n")],
    last: &[],
    answer: &[],
    after_text: true,
};

const LLAMA: CallSyntax = CallSyntax {
    first: &[OptionalMark("<|python_tag|>")],
    call: named_object!([], "\"parameters\"", []),
    between: &[Space(""), Text(";"), Space(" ")],
    last: &[],
    answer: &[],
    after_text: false,
};

const MISTRAL_LIST: CallSyntax = CallSyntax {
    first: &[Mark("[TOOL_CALLS]"), Space(" "), Text("["), Space("")],
    call: named_object!([], "\"arguments\"", []),
    between: &[Space(""), Text(","), Space(" ")],
    last: &[Space(""), Text("]")],
    answer: &[],
    after_text: true,
};

const GRANITE: CallSyntax = CallSyntax {
    first: &[Mark("<|tool_call|>"), Space(""), Text("["), Space("")],
    ..MISTRAL_LIST
};

const MISTRAL_NAMED: CallSyntax = CallSyntax {
    first: &[],
    call: &[Mark("[TOOL_CALLS]"), Name, Mark("[ARGS]"), Arguments],
    between: &[],
    last: &[],
    answer: &[],
    after_text: true,
};

const DEEPSEEK: CallSyntax = CallSyntax {
    first: &[Mark("<｜tool▁calls▁begin｜>")],
    call: &[
        Mark("<｜tool▁call▁begin｜>"),
        Name,
        Mark("<｜tool▁sep｜>"),
        Arguments,
        Mark("<｜tool▁call▁end｜>"),
    ],
    between: &[],
    last: &[Mark("<｜tool▁calls▁end｜>")],
    answer: &[],
    after_text: true,
};

const DEEPSEEK_FENCED: CallSyntax = CallSyntax {
    call: &[
        Mark("<｜tool▁call▁begin｜>"),
        Text("function"),
        Mark("<｜tool▁sep｜>"),
        Name,
        Space("\n"),
        Text("```json"),
        Space("\n"),
        Arguments,
        Space("\n"),
        Text("```"),
        Mark("<｜tool▁call▁end｜>"),
    ],
    between: &[Space("\n")],
    ..DEEPSEEK
};

const TGI: CallSyntax = CallSyntax {
    first: &[],
    call: &[
        Text("{"),
        Space(" "),
        Text("\"function\""),
        Space(""),
        Text(":"),
        Space(" "),
        Text("{"),
        Space(" "),
        Text("\"_name\""),
        Space(""),
        Text(":"),
        Space(" "),
        Text("\""),
        Name,
        Text("\""),
        Space(""),
        Members,
        Space(""),
        Text("}"),
    ],
    between: &[],
    last: &[],
    answer: &[
        Text("{"),
        Space(" "),
        Text("\"function\""),
        Space(""),
        Text(":"),
        Space(" "),
        Text("{"),
        Space(" "),
        Text("\"_name\""),
        Space(""),
        Text(":"),
        Space(" "),
        Text("\"no_tool\""),
        Space(""),
        Text(","),
        Space(" "),
        Text("\"content\""),
        Space(""),
        Text(":"),
        Space(" "),
        Text("\""),
        Answer,
        Space(""),
        Text("}"),
        Space(""),
        Text("}"),
    ],
    after_text: false,
};

impl ToolFormat {
    pub fn syntax(self) -> &'static CallSyntax {
        match self {
            Self::Hermes => &HERMES,
            Self::Llama => &LLAMA,
            Self::MistralList => &MISTRAL_LIST,
            Self::MistralNamed => &MISTRAL_NAMED,
            Self::Granite => &GRANITE,
            Self::DeepSeekFenced => &DEEPSEEK_FENCED,
            Self::DeepSeek => &DEEPSEEK,
            Self::Tgi => &TGI,
        }
    }
}

impl CallSyntax {
    /// What a first call begins with: nothing else of an answer may contain it.
    pub fn beginning(&self) -> Option<Piece> {
        self.first.iter().chain(self.call).copied().next()
    }
}
