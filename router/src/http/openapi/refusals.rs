//! The status codes that families of routes share, besides success. What the layers around all routes answer is added in `adjust`.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::content::Content;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Ref, RefOr};

type Responses = BTreeMap<String, RefOr<Response>>;

/// Of routes that need a loaded model.
pub struct WhileNotReady;

/// Of routes that also read parts of their path.
pub struct OfPaths;

/// Of routes that read a body.
pub struct OfBodies;

/// Of routes that generate.
pub struct OfGenerations;

/// Of routes that look something up by its id.
pub struct OfStored;

/// Of routes in Anthropic's form, whose errors are objects of another shape.
pub struct OfMessages;

impl IntoResponses for OfStored {
    fn responses() -> Responses {
        let mut responses = OfPaths::responses();
        responses.extend([response(422, refused())]);
        responses
    }
}

impl IntoResponses for OfMessages {
    fn responses() -> Responses {
        let error = |(status, description): (u16, &str)| {
            let content = Content::new(Some(Ref::from_schema_name("AnthropicErrorResponse")));
            let builder = ResponseBuilder::new().description(description);
            response(status, builder.content("application/json", content))
        };
        [
            (400, "The request is refused"),
            (408, "The body did not arrive in time"),
            (413, "The body is larger than the server allows"),
            (415, "The body is not announced as `application/json`"),
            (424, "The generation failed"),
            (429, "As many sequences are running as the server allows"),
            (500, "The server has a fault"),
            (503, "The model is loading, or the server is stopping"),
        ]
        .map(error)
        .into()
    }
}

impl IntoResponses for WhileNotReady {
    fn responses() -> Responses {
        Responses::from([error(
            503,
            "The model is loading, the server is stopping, or it cannot work",
        )])
    }
}

impl IntoResponses for OfPaths {
    fn responses() -> Responses {
        let mut responses = WhileNotReady::responses();
        responses.extend([text(400, "The path is not UTF-8")]);
        responses
    }
}

impl IntoResponses for OfBodies {
    fn responses() -> Responses {
        let mut responses = WhileNotReady::responses();
        responses.extend([
            text(400, "The body is not JSON"),
            error(408, "The body did not arrive in time"),
            text(413, "The body is larger than the server allows"),
            text(415, "The body is not announced as `application/json`"),
            response(422, refused()),
        ]);
        responses
    }
}

impl IntoResponses for OfGenerations {
    fn responses() -> Responses {
        let mut responses = OfBodies::responses();
        responses.extend([
            error(424, "The generation failed"),
            error(429, "As many sequences are running as the server allows"),
        ]);
        responses
    }
}

fn refused() -> ResponseBuilder {
    ResponseBuilder::new()
        .description(
            "A value that is refused, or, as text, a field that is missing or has another type",
        )
        .content("application/json", error_content())
        .content("text/plain", text_content())
}

fn error(status: u16, description: &str) -> (String, RefOr<Response>) {
    let builder = ResponseBuilder::new().description(description);
    response(status, builder.content("application/json", error_content()))
}

fn text(status: u16, description: &str) -> (String, RefOr<Response>) {
    let builder = ResponseBuilder::new().description(description);
    response(status, builder.content("text/plain", text_content()))
}

fn response(status: u16, builder: ResponseBuilder) -> (String, RefOr<Response>) {
    (status.to_string(), builder.build().into())
}

fn error_content() -> Content {
    Content::new(Some(Ref::from_schema_name("ErrorResponse")))
}

fn text_content() -> Content {
    Content::new(Some(ObjectBuilder::new().schema_type(Type::String)))
}
