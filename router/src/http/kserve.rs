//! The inference protocol of KServe, version 2, as TGI spoke it: health, metadata, and `/infer`, which generates for each input. A tensor
//! of text is a list of texts, as KServe says, or the bytes of one text, as TGI had it; outputs have the form of their inputs. The
//! served model answers whatever the name and version.

use axum::Json;
use axum::extract::{Path, State};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};

use super::body::{JsonBody, Object};
use super::errors::ApiError;
use super::generate::{GenerateBody, GenerateParameters};
use super::openapi::TAG;
use super::openapi::refusals::{OfGenerations, OfPaths, WhileNotReady};
use super::{App, HttpState, Ready, generate, health, metrics, openai};
use crate::input::ValidationError;

#[derive(Serialize, ToSchema)]
pub struct LiveResponse {
    live: bool,
}

#[derive(Serialize, ToSchema)]
pub struct ReadyResponse {
    /// The name that TGI gave it.
    live: bool,
    ready: bool,
}

#[derive(Serialize, ToSchema)]
pub struct MetadataServerResponse {
    name: String,
    version: String,
    extensions: Vec<&'static str>,
}

/// Whether the server lives, as KServe asks
#[utoipa::path(
    get, path = "/v2/health/live", operation_id = "kserve_health_live", tag = TAG,
    responses((status = 200, description = "The server lives", body = LiveResponse))
)]
pub async fn live() -> Json<LiveResponse> {
    Json(LiveResponse { live: true })
}

/// Whether requests are taken, as KServe asks
#[utoipa::path(
    get, path = "/v2/health/ready", operation_id = "kserve_health_ready", tag = TAG,
    responses((status = 200, description = "Requests are taken", body = ReadyResponse), WhileNotReady)
)]
pub async fn ready(state: State<HttpState>) -> Result<Json<ReadyResponse>, ApiError> {
    health::ready(state).await?;
    Ok(Json(ReadyResponse {
        live: true,
        ready: true,
    }))
}

/// The server's name, version and extensions
#[utoipa::path(
    get, path = "/v2", operation_id = "kserve_server_metadata", tag = TAG,
    responses((status = 200, description = "What the server is", body = MetadataServerResponse))
)]
pub async fn server_metadata() -> Json<MetadataServerResponse> {
    Json(MetadataServerResponse {
        name: "text-gen".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: vec!["health", "models", "metrics"],
    })
}

/// A model's name, version and extensions
#[utoipa::path(
    get, path = "/v2/models/{model_name}/versions/{model_version}",
    operation_id = "kserve_model_metadata", tag = TAG,
    params(
        ("model_name" = String, Path, description = "Repeated in the answer"),
        ("model_version" = String, Path, description = "Repeated in the answer")
    ),
    responses((status = 200, description = "What the model is", body = MetadataServerResponse), OfPaths)
)]
pub async fn model_metadata(
    _app: Ready,
    Path((name, version)): Path<(String, String)>,
) -> Json<MetadataServerResponse> {
    Json(MetadataServerResponse {
        name,
        version,
        extensions: vec!["infer", "ready"],
    })
}

/// Whether a model takes requests
#[utoipa::path(
    get, path = "/v2/models/{model_name}/versions/{model_version}/ready",
    operation_id = "kserve_model_metadata_ready", tag = TAG,
    params(
        ("model_name" = String, Path, description = "Not looked at"),
        ("model_version" = String, Path, description = "Not looked at")
    ),
    responses((status = 200, description = "Requests are taken", body = ReadyResponse), WhileNotReady)
)]
pub async fn model_ready(state: State<HttpState>) -> Result<Json<ReadyResponse>, ApiError> {
    ready(state).await
}

#[derive(Deserialize, ToSchema)]
pub struct InferenceRequest {
    /// Repeated in the answer. One is made where there is none.
    id: Option<String>,
    /// For every input. Without them tokens are drawn; with an empty object the likeliest are taken.
    #[schema(value_type = Option<GenerateParameters>)]
    parameters: Option<Object<GenerateParameters>>,
    /// Together at most as many texts as requests may run at a time.
    #[schema(value_type = Vec<Input>, min_items = 1)]
    inputs: Vec<Object<Input>>,
    /// Names for the outputs, one for each input. Without them they have the names of their inputs.
    #[schema(value_type = Option<Vec<Output>>)]
    outputs: Option<Vec<Object<Output>>>,
}

#[derive(Deserialize, ToSchema)]
struct Input {
    name: String,
    /// Not looked at: the data tell.
    #[allow(dead_code)]
    shape: Vec<usize>,
    /// Not looked at: the data tell.
    #[allow(dead_code)]
    #[schema(example = "BYTES")]
    datatype: String,
    #[schema(schema_with = text_tensor)]
    data: TextTensor,
}

#[derive(Deserialize, ToSchema)]
struct Output {
    name: String,
}

/// Texts, or one text as its bytes in UTF-8.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum TextTensor {
    Bytes(Vec<u8>),
    Texts(Vec<String>),
}

/// The derive does not say how large a byte is.
fn text_tensor() -> Schema {
    let byte = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(0))
        .maximum(Some(255));
    let text = ObjectBuilder::new().schema_type(Type::String);
    OneOfBuilder::new()
        .description(Some("Texts, or one text as its bytes in UTF-8."))
        .item(ArrayBuilder::new().items(text))
        .item(ArrayBuilder::new().items(byte))
        .build()
        .into()
}

#[derive(Serialize, ToSchema)]
pub struct InferenceOutput {
    id: String,
    /// In the order of the inputs.
    outputs: Vec<OutputChunk>,
}

#[derive(Serialize, ToSchema)]
struct OutputChunk {
    name: String,
    /// The number of texts, or 1 and the number of bytes.
    shape: Vec<usize>,
    #[schema(example = "BYTES")]
    datatype: &'static str,
    #[schema(schema_with = text_tensor)]
    data: TextTensor,
}

/// Generate for each input, as KServe asks
#[utoipa::path(
    post, path = "/v2/models/{model_name}/versions/{model_version}/infer",
    operation_id = "kserve_model_infer", tag = TAG,
    params(
        ("model_name" = String, Path, description = "Not looked at"),
        ("model_version" = String, Path, description = "Not looked at")
    ),
    request_body = InferenceRequest,
    responses((status = 200, description = "A text for each prompt", body = InferenceOutput), OfGenerations)
)]
pub async fn infer(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<InferenceRequest>>,
) -> Result<Json<InferenceOutput>, ApiError> {
    let inputs: Vec<Input> = body.inputs.into_iter().map(|Object(input)| input).collect();
    check_count(&app, &inputs)?;
    let names = output_names(&inputs, body.outputs)?;
    let parameters = body.parameters.map(|Object(parameters)| parameters);
    let tensors = inputs.into_iter().map(|input| input.data);
    let answering = tensors.map(|tensor| answer(&app, tensor, parameters.as_ref()));
    let chunk = |(name, data): (String, TextTensor)| OutputChunk {
        name,
        shape: data.shape(),
        datatype: "BYTES",
        data,
    };
    let answers = try_join_all(answering).await?;
    Ok(Json(InferenceOutput {
        id: body.id.unwrap_or_else(|| openai::unique_id("infer")),
        outputs: names.into_iter().zip(answers).map(chunk).collect(),
    }))
}

/// More texts than requests may run could never be answered.
fn check_count(app: &App, inputs: &[Input]) -> Result<(), ApiError> {
    let max = app.limits.max_concurrent_requests;
    let given: usize = inputs.iter().map(|input| input.data.num_texts()).sum();
    if (1..=max).contains(&given) {
        return Ok(());
    }
    let reason = format!("`inputs` must have > 0 and <= {max} texts. Given: {given}");
    Err(metrics::refused(ValidationError::Invalid(reason)))
}

fn output_names(
    inputs: &[Input],
    outputs: Option<Vec<Object<Output>>>,
) -> Result<Vec<String>, ApiError> {
    match outputs {
        None => Ok(inputs.iter().map(|input| input.name.clone()).collect()),
        Some(outputs) if outputs.len() == inputs.len() => Ok(outputs
            .into_iter()
            .map(|Object(output)| output.name)
            .collect()),
        Some(_) => Err(metrics::refused(ApiError::refused(
            "Inputs and outputs length mismatch",
            "length mismatch",
        ))),
    }
}

impl TextTensor {
    fn num_texts(&self) -> usize {
        match self {
            Self::Bytes(_) => 1,
            Self::Texts(texts) => texts.len(),
        }
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Bytes(bytes) => vec![1, bytes.len()],
            Self::Texts(texts) => vec![texts.len()],
        }
    }
}

async fn answer(
    app: &App,
    prompts: TextTensor,
    parameters: Option<&GenerateParameters>,
) -> Result<TextTensor, ApiError> {
    match prompts {
        TextTensor::Bytes(bytes) => {
            let prompt = String::from_utf8(bytes)
                .map_err(|error| metrics::refused(ApiError::refused(error.to_string(), "utf8")))?;
            let text = text(app, prompt, parameters).await?;
            Ok(TextTensor::Bytes(text.into_bytes()))
        }
        TextTensor::Texts(prompts) => {
            let texts = prompts
                .into_iter()
                .map(|prompt| text(app, prompt, parameters));
            Ok(TextTensor::Texts(try_join_all(texts).await?))
        }
    }
}

async fn text(
    app: &App,
    prompt: String,
    parameters: Option<&GenerateParameters>,
) -> Result<String, ApiError> {
    let body = GenerateBody::new(prompt, parameters.cloned());
    let (_, response) = generate::whole(app, body).await?;
    Ok(response.generated_text)
}
