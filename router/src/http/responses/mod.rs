//! `/v1/responses`: OpenAI's newer surface. A request is items in and a response object out, which is kept for a while so that it can be
//! fetched, continued and cancelled. What is kept lives in this process and has one owner, `ResponseStore`.

mod body;
pub mod items;
mod object;
mod tools;

mod events;
mod run;
mod store;

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer;
use super::body::{JsonBody, Object};
use super::errors::ApiError;
use super::openapi::TAG;
use super::openapi::refusals::{OfGenerations, OfStored};
use super::{App, Ready, metrics, openai, sse};
use crate::input::ValidationError;
use body::{Plan, ResponseBody};
use events::{Builder, Event};
use items::Item;
use object::ResponseObject;
use run::{Run, Stored};
pub use store::ResponseStore;

const MAX_LISTED: usize = 100;
const DEFAULT_LISTED: usize = 20;

/// Answer in the form of OpenAI's Responses
#[utoipa::path(
    post, path = "/v1/responses", operation_id = "create_response", tag = TAG,
    request_body = ResponseBody,
    responses(
        (status = 200, description = "The response, streamed if `stream` is true", content((ResponseObject = "application/json"), (Event = "text/event-stream"))),
        OfGenerations
    )
)]
pub async fn create(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<ResponseBody>>,
) -> Result<Response, ApiError> {
    let model = openai::answering_model(&app, body.model.clone());
    let earlier = earlier(&app, body.previous_response_id.as_deref()).map_err(metrics::refused)?;
    let plan = body.plan(earlier).map_err(metrics::refused)?;
    start(&app, model, plan).await
}

fn earlier(app: &App, previous_id: Option<&str>) -> Result<Vec<Arc<Item>>, ApiError> {
    let Some(id) = previous_id else {
        return Ok(Vec::new());
    };
    app.responses.conversation(id).ok_or_else(|| {
        let message = format!("`previous_response_id`: no response with id '{id}' is stored here");
        ApiError::new(
            StatusCode::BAD_REQUEST,
            message,
            "previous_response_not_found",
        )
    })
}

async fn start(app: &App, model: String, plan: Plan) -> Result<Response, ApiError> {
    let streamed = plan.request.streamed;
    let background = plan.asked.background;
    let response = ResponseObject::new(model, plan.asked);
    let answer = answer::start(app, plan.request).await?;
    let stored = response.asked.store.then(|| {
        let store = &app.responses;
        let (tracked, cancelled) = store.begin(response.clone(), plan.input, plan.items);
        Stored {
            tracked,
            cancelled: Some(cancelled),
            background,
        }
    });
    let prompt_chars = answer.prompt_chars;
    let builder = Builder::new(response.clone(), plan.wants_logprobs);
    let mut run = Run::new(builder, answer.steps, stored);
    let early_headers = answer::early_headers(app, prompt_chars);
    if background {
        app.responses.spawn(async move { run.finish().await });
        return Ok((early_headers, Json(response)).into_response());
    }
    if streamed {
        let name = |event: &Event| event.kind.name();
        return Ok(sse::stream(early_headers, run.into_events(), name));
    }
    run.finish().await;
    match (&run.error, &run.usage) {
        (Some(error), _) => Err(error.clone()),
        (None, Some(usage)) => {
            let headers = answer::headers(app, prompt_chars, usage);
            Ok((headers, Json(run.response())).into_response())
        }
        (None, None) => Ok((early_headers, Json(run.response())).into_response()),
    }
}

#[derive(Deserialize)]
pub struct RetrieveQuery {
    stream: Option<bool>,
}

/// A response that this process still has
#[utoipa::path(
    get, path = "/v1/responses/{id}", operation_id = "retrieve_response", tag = TAG,
    params(("id" = String, Path, description = "Of the response")),
    responses(
        (status = 200, description = "The response", body = ResponseObject),
        (status = 404, description = "There is no such response"),
        OfStored
    )
)]
pub async fn retrieve(
    Ready(app): Ready,
    Path(id): Path<String>,
    Query(query): Query<RetrieveQuery>,
) -> Result<Json<ResponseObject>, ApiError> {
    if query.stream == Some(true) {
        let reason = "`stream` is not supported when a response is fetched";
        return Err(ValidationError::Invalid(reason.to_owned()).into());
    }
    app.responses.get(&id).map(Json).ok_or_else(|| unknown(&id))
}

#[derive(Serialize, ToSchema)]
#[schema(as = ResponseDeleted)]
pub struct Deleted {
    id: String,
    #[schema(example = "response")]
    object: &'static str,
    deleted: bool,
}

/// Forget a response
#[utoipa::path(
    delete, path = "/v1/responses/{id}", operation_id = "delete_response", tag = TAG,
    params(("id" = String, Path, description = "Of the response")),
    responses(
        (status = 200, description = "It is forgotten", body = Deleted),
        (status = 404, description = "There is no such response"),
        OfStored
    )
)]
pub async fn delete(Ready(app): Ready, Path(id): Path<String>) -> Result<Json<Deleted>, ApiError> {
    if !app.responses.delete(&id) {
        return Err(unknown(&id));
    }
    Ok(Json(Deleted {
        id,
        object: "response",
        deleted: true,
    }))
}

/// End a response that runs
#[utoipa::path(
    post, path = "/v1/responses/{id}/cancel", operation_id = "cancel_response", tag = TAG,
    params(("id" = String, Path, description = "Of the response")),
    responses(
        (status = 200, description = "The response so far", body = ResponseObject),
        (status = 404, description = "There is no such response"),
        OfStored
    )
)]
pub async fn cancel(
    Ready(app): Ready,
    Path(id): Path<String>,
) -> Result<Json<ResponseObject>, ApiError> {
    app.responses
        .cancel(&id)
        .map(Json)
        .ok_or_else(|| unknown(&id))
}

#[derive(Deserialize)]
pub struct ListQuery {
    after: Option<String>,
    limit: Option<usize>,
    order: Option<Order>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Asc,
    #[default]
    Desc,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ResponseItemList)]
pub struct ItemList {
    #[schema(example = "list")]
    object: &'static str,
    #[schema(value_type = Vec<Item>)]
    data: Vec<Arc<Item>>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

/// What a response answers
#[utoipa::path(
    get, path = "/v1/responses/{id}/input_items", operation_id = "list_input_items", tag = TAG,
    params(("id" = String, Path, description = "Of the response")),
    responses(
        (status = 200, description = "Its items", body = ItemList),
        (status = 404, description = "There is no such response"),
        OfStored
    )
)]
pub async fn input_items(
    Ready(app): Ready,
    Path(id): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<ItemList>, ApiError> {
    let items = app.responses.input(&id).ok_or_else(|| unknown(&id))?;
    let limit = query.limit.unwrap_or(DEFAULT_LISTED);
    if !(1..=MAX_LISTED).contains(&limit) {
        let reason = format!("`limit` must be > 0 and <= {MAX_LISTED}. Given: {limit}");
        return Err(ValidationError::Invalid(reason).into());
    }
    let mut left: VecDeque<Arc<Item>> = items.into();
    if let Order::Desc = query.order.unwrap_or_default() {
        left.make_contiguous().reverse();
    }
    if let Some(after) = &query.after {
        let Some(at) = left.iter().position(|item| item.id() == after) else {
            let reason = format!("`after` must be the id of an item. Given: {after}");
            return Err(ValidationError::Invalid(reason).into());
        };
        left.drain(..=at);
    }
    let has_more = left.len() > limit;
    left.truncate(limit);
    let id_of = |item: &Arc<Item>| item.id().to_owned();
    Ok(Json(ItemList {
        object: "list",
        first_id: left.front().map(id_of),
        last_id: left.back().map(id_of),
        has_more,
        data: left.into(),
    }))
}

fn unknown(id: &str) -> ApiError {
    let message = format!("no response with id '{id}' is stored here");
    ApiError::new(StatusCode::NOT_FOUND, message, "not_found")
}
