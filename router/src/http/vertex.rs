//! `/vertex`, the one route that Vertex AI calls: several bodies of `/generate` or of `/v1/chat/completions`, and the text of each.
//! Nothing is streamed. If one instance fails, the others are cancelled and its error is the answer.

use axum::Json;
use futures::future::try_join_all;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body::{self, JsonBody, Object, TellingKeys};
use super::chat_body::ChatBody;
use super::errors::ApiError;
use super::generate::GenerateBody;
use super::openapi::TAG;
use super::openapi::described::VertexInstance;
use super::openapi::refusals::OfGenerations;
use super::{App, Ready, chat, generate, metrics};
use crate::input::ValidationError;

#[derive(Deserialize, ToSchema)]
#[schema(as = VertexRequest)]
pub struct VertexBody {
    /// At most as many as requests may run at a time. Nothing is streamed.
    #[schema(value_type = Vec<VertexInstance>, min_items = 1)]
    instances: Vec<Instance>,
}

enum Instance {
    Generate(Box<GenerateBody>),
    Chat(Box<ChatBody>),
}

impl<'de> Deserialize<'de> for Instance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let keys: TellingKeys = body::parse(&json)?;
        if keys.inputs.is_some() {
            body::parse(&json).map(Self::Generate)
        } else if keys.messages.is_some() {
            body::parse(&json).map(Self::Chat)
        } else {
            Err(D::Error::custom("`inputs` or `messages` is needed"))
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = VertexResponse)]
pub struct Predictions {
    /// The text of each instance, in their order.
    predictions: Vec<String>,
}

/// The route of Google Vertex AI: several bodies of `/generate` or `/v1/chat/completions`, and the text of each
#[utoipa::path(
    post, path = "/vertex", operation_id = "vertex_compatibility", tag = TAG,
    request_body = VertexBody,
    responses((status = 200, description = "The texts", body = Predictions), OfGenerations)
)]
pub async fn vertex(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<VertexBody>>,
) -> Result<Json<Predictions>, ApiError> {
    check(&app, &body)?;
    let predicting = body
        .instances
        .into_iter()
        .map(|instance| predict(&app, instance));
    Ok(Json(Predictions {
        predictions: try_join_all(predicting).await?,
    }))
}

/// More instances than requests may run could never be answered.
fn check(app: &App, body: &VertexBody) -> Result<(), ApiError> {
    let max = app.limits.max_concurrent_requests;
    let given = body.instances.len();
    if (1..=max).contains(&given) {
        return Ok(());
    }
    let reason = format!("`instances` must have > 0 and <= {max} entries. Given: {given}");
    Err(metrics::refused(ValidationError::Invalid(reason)))
}

async fn predict(app: &App, instance: Instance) -> Result<String, ApiError> {
    match instance {
        Instance::Generate(mut body) => {
            body.sample_by_default();
            let (_, response) = generate::whole(app, *body).await?;
            Ok(response.generated_text)
        }
        Instance::Chat(body) => chat::text(app, *body).await,
    }
}
