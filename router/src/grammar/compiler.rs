//! Grammars to constraints, within limits of size, time and states. Every compilation has a thread of its own with a deep stack: what
//! clients write may nest deeply, and must neither overflow the process nor hold up anybody else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Logger, Matcher, ParserFactory};

use super::constraint::Constraint;
use super::tool_grammar::tool_grammar;
use super::vocabulary::token_environment;
use super::{GrammarError, schema, tool_schema};
use crate::tokenizer::Tokenizer;
use crate::types::message_format::MessageFormat;
use crate::types::{Grammar, Tool, ToolUse};

/// Longest text of a grammar.
const MAX_GRAMMAR_BYTES: usize = 512 * 1024;
const MAX_CHOICES: usize = 4096;
/// Deepest nesting of brackets in a regex or a Lark grammar. (JSON has the parser's own limit of 128.)
const MAX_NESTING: usize = 200;
const COMPILE_TIMEOUT: Duration = Duration::from_secs(5);
/// Compilations at once, those included whose clients were told that it takes too long.
const MAX_COMPILATIONS: usize = 8;
/// Address space, not memory: pages are taken as they are used.
const STACK_BYTES: usize = 256 * 1024 * 1024;
/// What a message says that is for the developers of the compiler.
const LONGEST_MESSAGE_CHARS: usize = 500;

/// Of a mask, in the compiler's units: about 7 ms of lexer and 1 ms of parser work.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 100_000,
    step_max_items: 20_000,
    max_lexer_states: 50_000,
    max_grammar_size: 500_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};

/// Turns grammars into constraints for the tokens of one model.
pub struct GrammarCompiler {
    tokenizer: Arc<Tokenizer>,
    vocab_size: u32,
    /// Made when it is first needed, or by `prepare`: it takes a while.
    factory: OnceLock<Result<Arc<ParserFactory>, GrammarError>>,
    num_running: Arc<AtomicUsize>,
}

impl GrammarCompiler {
    /// `vocab_size` is the model's: masks have a bit for each of its tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: u32) -> Self {
        Self {
            tokenizer,
            vocab_size,
            factory: OnceLock::new(),
            num_running: Arc::default(),
        }
    }

    /// Makes what all grammars share. One that is compiled meanwhile waits for it.
    pub fn prepare(&self) {
        if let Err(error) = self.factory() {
            tracing::warn!("{error}");
        }
    }

    /// The constraint of a grammar, before its first token. Takes milliseconds, at most some seconds: not for an async thread.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        check_size(grammar)?;
        self.check_alternatives(grammar)?;
        let grammar = top_level(grammar)?;
        self.compile_top_level(grammar)
    }

    /// The same for an answer that may hold reasoning and calls of tools beside its content.
    pub fn compile_answer(
        &self,
        format: &MessageFormat,
        tools: Option<&ToolUse>,
        content: Option<&Grammar>,
    ) -> Result<Constraint, GrammarError> {
        content.map_or(Ok(()), check_size)?;
        let tool_list = tools.map_or(&[][..], |tools| &tools.tools);
        let bytes = tool_list.iter().map(|tool| tool.parameters.len()).sum();
        check_bytes(bytes)?;
        content.map_or(Ok(()), |content| self.check_alternatives(content))?;
        for tool in tool_list {
            let named = |error| match error {
                GrammarError::Invalid(reason) => {
                    GrammarError::Invalid(format!("tool `{}`: {reason}", tool.name))
                }
                error => error,
            };
            self.check_one_of(&tool.parameters).map_err(named)?;
        }
        let grammar = tool_grammar(format, tools, content, &self.tokenizer)?;
        self.compile_top_level(grammar)
            .map_err(|error| self.blame(error, tool_list))
    }

    fn check_alternatives(&self, grammar: &Grammar) -> Result<(), GrammarError> {
        match grammar {
            Grammar::JsonSchema(text) => self.check_one_of(text),
            _ => Ok(()),
        }
    }

    /// The alternatives of a `oneOf` must exclude each other as the client wrote them. Those that do so only since their objects were
    /// closed would give values that fit several.
    fn check_one_of(&self, schema: &str) -> Result<(), GrammarError> {
        if !schema.contains("\"oneOf\"") {
            return Ok(());
        }
        let open = schema::read_open(schema)?;
        let compiled = self.compile_top_level(TopLevelGrammar::from_json_schema(open));
        compiled.map(|_| ())
    }

    /// The same error of the tool alone, if one has it.
    fn blame(&self, error: GrammarError, tools: &[Tool]) -> GrammarError {
        let own_error = |tool: &Tool| {
            let schema = tool_schema::arguments(tool).ok()?;
            let grammar = TopLevelGrammar::from_json_schema(schema);
            match self.compile_top_level(grammar) {
                Err(GrammarError::Invalid(reason)) => {
                    Some(format!("tool `{}`: {reason}", tool.name))
                }
                _ => None,
            }
        };
        let blamed = tools.iter().find_map(own_error);
        blamed.map_or(error, GrammarError::Invalid)
    }

    /// The same for what is llguidance's own form already.
    fn compile_top_level(&self, grammar: TopLevelGrammar) -> Result<Constraint, GrammarError> {
        let factory = self.factory()?;
        let end_token_ids: Arc<[u32]> = self.tokenizer.end_token_ids().into();
        let running = Running::start(&self.num_running)?;
        let (sender, receiver) = mpsc::channel();
        let compilation = move || {
            let _until_done = running;
            let _ = sender.send(compile_with(&factory, grammar, end_token_ids));
        };
        thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(compilation)
            .map_err(|_| GrammarError::Busy)?;
        match receiver.recv_timeout(COMPILE_TIMEOUT) {
            Ok(compiled) => compiled,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let seconds = COMPILE_TIMEOUT.as_secs();
                let message = format!("the grammar took longer than {seconds} s to compile");
                Err(GrammarError::TooComplex(message))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(GrammarError::Invalid(
                "the grammar could not be compiled".to_owned(),
            )),
        }
    }

    fn factory(&self) -> Result<Arc<ParserFactory>, GrammarError> {
        let make = || make_factory(&self.tokenizer, self.vocab_size);
        self.factory.get_or_init(make).clone()
    }
}

/// A place among the running compilations.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn start(num_running: &Arc<AtomicUsize>) -> Result<Self, GrammarError> {
        let running = Self(num_running.clone());
        // Counted first, so that the drop on the way out of a refusal is right.
        match num_running.fetch_add(1, Ordering::Relaxed) {
            before if before < MAX_COMPILATIONS => Ok(running),
            _ => Err(GrammarError::Busy),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn make_factory(
    tokenizer: &Tokenizer,
    vocab_size: u32,
) -> Result<Arc<ParserFactory>, GrammarError> {
    let environment = token_environment(tokenizer, vocab_size)?;
    let mut factory = ParserFactory::new_simple(&environment)
        .map_err(|error| GrammarError::Unsupported(message(&error.to_string())))?;
    factory.quiet();
    Ok(Arc::new(factory))
}

fn check_size(grammar: &Grammar) -> Result<(), GrammarError> {
    let (bytes, depth) = match grammar {
        Grammar::JsonObject => (0, 0),
        Grammar::JsonSchema(text) => (text.len(), 0),
        Grammar::Regex(text) | Grammar::Lark(text) => (text.len(), nesting(text)),
        Grammar::Choice(choices) => {
            if choices.is_empty() || choices.len() > MAX_CHOICES {
                let given = choices.len();
                let message = format!("a choice must be among 1 to {MAX_CHOICES}. Given: {given}");
                return Err(GrammarError::Invalid(message));
            }
            (choices.iter().map(String::len).sum(), 0)
        }
    };
    check_bytes(bytes)?;
    if depth > MAX_NESTING {
        let message = format!("brackets must be nested at most {MAX_NESTING} deep. Given: {depth}");
        return Err(GrammarError::TooComplex(message));
    }
    Ok(())
}

fn check_bytes(bytes: usize) -> Result<(), GrammarError> {
    if bytes > MAX_GRAMMAR_BYTES {
        let message =
            format!("a grammar must have at most {MAX_GRAMMAR_BYTES} bytes. Given: {bytes}");
        return Err(GrammarError::TooComplex(message));
    }
    Ok(())
}

/// How deeply brackets are nested, at most: those in strings and classes count too.
fn nesting(text: &str) -> usize {
    let mut depth = 0usize;
    let mut deepest = 0;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

pub(super) fn top_level(grammar: &Grammar) -> Result<TopLevelGrammar, GrammarError> {
    Ok(match grammar {
        Grammar::JsonSchema(text) => TopLevelGrammar::from_json_schema(schema::read(text)?),
        Grammar::JsonObject => TopLevelGrammar::from_json_schema(schema::any_object()?),
        Grammar::Regex(regex) if regex.is_empty() => {
            let message = "an empty regex allows nothing".to_owned();
            return Err(GrammarError::Invalid(message));
        }
        Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Grammar::Choice(choices) => TopLevelGrammar::from_lark(choice(choices)),
        Grammar::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
    })
}

/// A Lark grammar of a few texts. Its strings are JSON's.
fn choice(choices: &[String]) -> String {
    let quoted = choices
        .iter()
        .map(|choice| serde_json::Value::from(choice.as_str()).to_string());
    format!("start: {}", quoted.collect::<Vec<_>>().join(" | "))
}

fn compile_with(
    factory: &ParserFactory,
    grammar: TopLevelGrammar,
    end_token_ids: Arc<[u32]>,
) -> Result<Constraint, GrammarError> {
    let parser = factory.create_parser_from_init_ext(
        GrammarInit::Serialized(grammar),
        Logger::new(0, 0),
        InferenceCapabilities::default(),
        LIMITS,
    );
    let parser = parser.map_err(|error| GrammarError::Invalid(message(&error.to_string())))?;
    Constraint::start(Matcher::new(Ok(parser)), end_token_ids)
}

/// An error of the compiler for clients: one line, and nothing of its insides.
pub(super) fn message(error: &str) -> String {
    let first = error.trim_start();
    if first.starts_with("panic:") {
        return "the grammar could not be compiled".to_owned();
    }
    if first.contains("oneOf constraints are not supported") {
        // The library's own words advise an option that would give up the guarantee.
        return "`oneOf` is supported where its alternatives exclude each other; `anyOf` has no such rule"
            .to_owned();
    }
    let line = first.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_MESSAGE_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
