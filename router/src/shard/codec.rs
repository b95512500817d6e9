//! Sends messages that are encoded already, so that one plan is encoded once however many ranks receive it.

use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::Bytes;
use tonic_prost::ProstDecoder;

use super::proto::StepResult;

/// Encoded `RunRequest`s out, `StepResult`s in.
#[derive(Default)]
pub(super) struct PlanCodec;

impl Codec for PlanCodec {
    type Encode = Bytes;
    type Decode = StepResult;
    type Encoder = CopyEncoder;
    type Decoder = ProstDecoder<StepResult>;

    fn encoder(&mut self) -> Self::Encoder {
        CopyEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

/// Copies the bytes into the frame.
pub(super) struct CopyEncoder;

impl Encoder for CopyEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put(frame, item);
        Ok(())
    }
}
