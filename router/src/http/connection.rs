//! One connection, HTTP/1.1 or HTTP/2, with a deadline for everything that its client can be slow at. Knows no route; what a client
//! that stays away or stops reading held is given back by closing its connection.

use std::convert::Infallible;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Version};
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::select;
use tokio::sync::{Notify, watch};
use tokio::time::{Sleep, sleep, timeout};
use tower::ServiceExt;

/// Of a request's line and headers; also what HTTP/1.1 buffers of a body or of an answer.
const MAX_HEAD_BYTES: u32 = 64 * 1024;

/// An HTTP/2 client that is not heard of is asked that often, and must answer as fast.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// What a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// For the head of a request to arrive, counted from the moment at which it is waited for. So it is also how long a
    /// connection may be idle.
    pub head_timeout: Duration,
    /// For the body of a request to arrive as a whole.
    pub body_timeout: Duration,
    /// Without any progress while there is something to write.
    pub write_timeout: Duration,
    /// Further ones wait to be accepted.
    pub max_connections: usize,
}

impl ConnectionLimits {
    /// A body of the largest size may come in at 64 KiB a second.
    pub fn for_payload(payload_limit_bytes: usize) -> Self {
        Self {
            // Load balancers reuse a connection that was idle for up to a minute; it must not be closed under their hands.
            head_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30 + payload_limit_bytes as u64 / 65_536),
            write_timeout: Duration::from_secs(60),
            max_connections: 16_384,
        }
    }
}

/// Answers the requests of a connection until it ends. After `stop` has changed, only those that it has begun.
pub async fn serve(
    stream: TcpStream,
    router: Router,
    limits: ConnectionLimits,
    mut stop: watch::Receiver<bool>,
) {
    // Without this a token waits for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("cannot set TCP_NODELAY: {error}");
    }
    let requested = Arc::new(Notify::new());
    let noticed = requested.clone();
    let service = TowerToHyperService::new(tower::service_fn(move |request: Request<Incoming>| {
        noticed.notify_one();
        answer(router.clone(), request)
    }));
    let io = TokioIo::new(WriteTimeout::new(stream, limits.write_timeout));
    let builder = builder(limits);
    let mut connection = pin!(builder.serve_connection(io, service));
    // The builder's own timeout begins only when the protocol is known.
    let mut first_request = pin!(timeout(limits.head_timeout, requested.notified()));
    let (mut is_new, mut is_stopping) = (true, false);
    loop {
        select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!("a connection ended: {error}");
                }
                return;
            }
            requested = &mut first_request, if is_new => {
                is_new = false;
                if requested.is_err() {
                    return;
                }
            }
            _ = stop.changed(), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What a client has sent of a body that nobody wants is not read on, so that its connection ends with the answer. The answer says so:
/// the client would send its next request into a connection that is gone.
async fn answer(router: Router, request: Request<Incoming>) -> Result<Response, Infallible> {
    let is_http1 = request.version() < Version::HTTP_2;
    let unread = Arc::new(AtomicBool::new(!request.body().is_end_stream()));
    let watched = |body| WatchedBody {
        body,
        unread: unread.clone(),
    };
    let mut response = router
        .oneshot(request.map(|body| Body::new(watched(body))))
        .await?;
    if is_http1 && unread.load(Ordering::Relaxed) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    Ok(response)
}

/// The body of a request, which tells when all of it was read.
struct WatchedBody {
    body: Incoming,
    unread: Arc<AtomicBool>,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || this.body.is_end_stream() {
            this.unread.store(false, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn builder(limits: ConnectionLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(MAX_HEAD_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_send_buf_size(MAX_HEAD_BYTES as usize);
    builder
}

/// A stream whose writes fail when the other side takes nothing for too long.
struct WriteTimeout<S> {
    stream: S,
    limit: Duration,
    /// Runs while a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> WriteTimeout<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            deadline: None,
        }
    }

    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watch(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_reader_that_takes_nothing_for_too_long_fails_the_write() {
        let (ours, _theirs) = duplex(16);
        let mut stream = WriteTimeout::new(ours, Duration::from_millis(1));
        stream.write_all(&[0; 16]).await.unwrap();
        let error = stream.write_all(&[0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn every_byte_that_is_taken_starts_the_time_anew() {
        let (ours, mut theirs) = duplex(1);
        let mut stream = WriteTimeout::new(ours, Duration::from_secs(60));
        let context = &mut Context::from_waker(Waker::noop());
        for _ in 0..2 {
            assert!(Pin::new(&mut stream).poll_write(context, &[0]).is_ready());
            assert!(stream.deadline.is_none());
            assert!(Pin::new(&mut stream).poll_write(context, &[0]).is_pending());
            assert!(stream.deadline.is_some());
            theirs.read_u8().await.unwrap();
        }
    }
}
