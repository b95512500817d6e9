//! The streamed form of `/v1/completions`. The chunks of several prompts come as they are ready; the last chunk of each prompt has its
//! usage, where clients of TGI read it.

use axum::response::Response;
use futures::Stream;
use futures::stream::{BoxStream, SelectAll, StreamExt, unfold};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::answer::{self, Answer, Step};
use super::completions::{self, Choice, Form, Logprobs, PromptRequest};
use super::errors::ApiError;
use super::openai::{self, SYSTEM_FINGERPRINT, Usage};
use super::sse::{self, EventBuffer, EventWriter};
use crate::generation::Progress;
use crate::output::{Finish, TextDelta};

type Steps = BoxStream<'static, Result<Step, ApiError>>;

/// A piece of one choice of a streamed completion.
#[derive(Serialize, ToSchema)]
#[schema(as = Chunk)]
pub struct Chunk<'a> {
    #[schema(example = "text_completion")]
    object: &'static str,
    id: &'a str,
    created: u64,
    choices: [Choice; 1],
    model: &'a str,
    system_fingerprint: &'static str,
    /// Of the prompt, with its last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

pub async fn stream(
    app: &App,
    form: Form,
    requests: Result<Vec<PromptRequest>, ApiError>,
) -> Response {
    let n = form.n;
    let mut writer = CompletionWriter {
        form,
        running_prompts: 0,
        prompts: Vec::new(),
        choices: Vec::new(),
    };
    let mut prompt_chars = 0;
    let steps = completions::start(app, requests).await.map(|answers| {
        for (answer, echoed) in &answers {
            prompt_chars += answer.prompt_chars;
            writer.add_prompt(answer, echoed);
        }
        merge(answers, n)
    });
    sse::respond(answer::early_headers(app, prompt_chars), steps, writer)
}

/// The steps of all prompts as they come; a sequence's index becomes its choice's. An error of one prompt ends the stream and
/// cancels the others.
fn merge(mut answers: Vec<(Answer, String)>, n: usize) -> Steps {
    if let [_] = answers[..]
        && let Some((answer, _)) = answers.pop()
    {
        return answer.steps;
    }
    let mut all = SelectAll::new();
    for (prompt_idx, (answer, _)) in answers.into_iter().enumerate() {
        let renumbered = answer.steps.map(move |step| match step? {
            Step::Progress(idx, progress) => Ok(Step::Progress(prompt_idx * n + idx, progress)),
            done @ Step::Done(_) => Ok(done),
        });
        all.push(renumbered.boxed());
    }
    until_error(all).boxed()
}

fn until_error(all: SelectAll<Steps>) -> impl Stream<Item = Result<Step, ApiError>> {
    unfold(Some(all), |all| async move {
        let mut all = all?;
        let step = all.next().await?;
        let rest = step.is_ok().then_some(all);
        Some((step, rest))
    })
}

struct PromptState {
    usage: answer::Usage,
    unfinished: usize,
}

struct ChoiceState {
    /// Still to be put before the first text.
    echoed: String,
    /// Characters of the text so far.
    offset: usize,
}

struct CompletionWriter {
    form: Form,
    running_prompts: usize,
    prompts: Vec<PromptState>,
    choices: Vec<ChoiceState>,
}

impl CompletionWriter {
    fn add_prompt(&mut self, answer: &Answer, echoed: &str) {
        let usage = answer::Usage {
            prompt_tokens: answer.prompt_ids.len(),
            ..answer::Usage::default()
        };
        self.running_prompts += 1;
        self.prompts.push(PromptState {
            usage,
            unfinished: self.form.n,
        });
        self.choices.extend((0..self.form.n).map(|_| ChoiceState {
            echoed: echoed.to_owned(),
            offset: echoed.chars().count(),
        }));
    }

    fn write_chunk(&mut self, index: usize, delta: TextDelta, events: &mut EventBuffer) {
        let finish_reason = delta.finish.map(openai::finish_reason);
        let usage = self.count(index, delta.finish);
        let choice = &mut self.choices[index];
        let mut text = std::mem::take(&mut choice.echoed);
        if text.is_empty() {
            text = delta.text;
        } else {
            text.push_str(&delta.text);
        }
        let ends_text = delta.finish == Some(Finish::EndToken);
        let logprobs = (self.form.logprobs && !ends_text).then(|| {
            let mut logprobs = Logprobs::default();
            logprobs.push(delta.token, &mut choice.offset);
            logprobs
        });
        let identity = &self.form.identity;
        events.push(&Chunk {
            object: "text_completion",
            id: &identity.id,
            created: identity.created,
            choices: [Choice {
                index,
                text,
                logprobs,
                finish_reason,
            }],
            model: &identity.model,
            system_fingerprint: SYSTEM_FINGERPRINT,
            usage,
        });
    }

    /// The prompt's usage, if this is its last token.
    fn count(&mut self, index: usize, finish: Option<Finish>) -> Option<Usage> {
        let prompt = &mut self.prompts[index / self.form.n];
        prompt.usage.generated_tokens += 1;
        prompt.unfinished -= usize::from(finish.is_some());
        (prompt.unfinished == 0).then(|| Usage::new(&prompt.usage))
    }
}

impl EventWriter for CompletionWriter {
    fn step(&mut self, step: Step, events: &mut EventBuffer) {
        match step {
            Step::Progress(index, Progress::Text(delta)) => self.write_chunk(index, delta, events),
            Step::Progress(
                index,
                Progress::Admitted {
                    num_cached_tokens, ..
                },
            ) => {
                let usage = &mut self.prompts[index / self.form.n].usage;
                usage.num_cached_tokens = usage.num_cached_tokens.max(num_cached_tokens);
            }
            Step::Progress(..) => {}
            Step::Done(_) => {
                self.running_prompts -= 1;
                if self.running_prompts == 0 {
                    events.push_done();
                }
            }
        }
    }

    fn error(&mut self, error: &ApiError, events: &mut EventBuffer) {
        events.push(&error.openai_event());
    }
}
