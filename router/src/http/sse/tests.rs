use std::task::Waker;

use futures::channel::mpsc;
use serde_json::json;

use super::*;

type Body = EventBody<mpsc::UnboundedReceiver<u32>, fn(u32, &mut EventBuffer)>;

/// Odd numbers are events.
fn body() -> (mpsc::UnboundedSender<u32>, Body) {
    let (numbers, items) = mpsc::unbounded();
    let mut keep_alive = EventBuffer::default();
    keep_alive.push_comment();
    let write = |number: u32, events: &mut EventBuffer| {
        if number % 2 == 1 {
            events.push(&number);
        }
    };
    (numbers, EventBody::new(items, write, keep_alive))
}

/// The next piece; `None`: the end.
fn poll(body: &mut Body) -> Poll<Option<String>> {
    let context = &mut Context::from_waker(Waker::noop());
    let piece = Pin::new(body).poll_frame(context);
    piece.map(|frame| {
        let data = frame?.unwrap().into_data().unwrap();
        Some(String::from_utf8(data.to_vec()).unwrap())
    })
}

fn piece(text: &str) -> Poll<Option<String>> {
    Poll::Ready(Some(text.to_owned()))
}

#[tokio::test]
async fn events_that_are_ready_together_go_together_and_the_last_ones_come_before_the_end() {
    let (numbers, mut body) = body();
    assert_eq!(poll(&mut body), Poll::Pending);
    for number in 1..4 {
        numbers.unbounded_send(number).unwrap();
    }
    assert_eq!(poll(&mut body), piece("data: 1\n\ndata: 3\n\n"));
    numbers.unbounded_send(5).unwrap();
    drop(numbers);
    assert_eq!(poll(&mut body), piece("data: 5\n\n"));
    assert_eq!(poll(&mut body), Poll::Ready(None));
    assert_eq!(poll(&mut body), Poll::Ready(None));
}

#[tokio::test]
async fn a_piece_is_bounded_however_much_is_ready() {
    let (numbers, mut body) = body();
    for _ in 0..MAX_PIECE_BYTES {
        numbers.unbounded_send(1).unwrap();
    }
    let mut rest = MAX_PIECE_BYTES * "data: 1\n\n".len();
    while let Poll::Ready(Some(piece)) = poll(&mut body) {
        assert!(piece.len() < MAX_PIECE_BYTES + "data: 1\n\n".len());
        rest -= piece.len();
    }
    assert_eq!(rest, 0);
}

/// The timer fires, so long after the last event.
async fn fire(body: &mut Body, since: Duration) {
    body.silence.begun_at = Instant::now() - since;
    body.silence.timer = Box::pin(sleep(Duration::ZERO));
    body.silence.timer.as_mut().await;
}

#[tokio::test]
async fn a_comment_breaks_every_silence_of_15_seconds_and_no_shorter_one() {
    let (_numbers, mut body) = body();
    fire(&mut body, KEEP_ALIVE / 2).await;
    assert_eq!(poll(&mut body), Poll::Pending);
    for _ in 0..2 {
        fire(&mut body, KEEP_ALIVE).await;
        assert_eq!(poll(&mut body), piece(":\n\n"));
        assert_eq!(poll(&mut body), Poll::Pending);
        let left = body.silence.timer.deadline() - Instant::now();
        assert!(left > KEEP_ALIVE / 2 && left <= KEEP_ALIVE, "{left:?}");
    }
}

#[tokio::test]
async fn an_event_breaks_the_silence() {
    let (numbers, mut body) = body();
    fire(&mut body, KEEP_ALIVE).await;
    numbers.unbounded_send(1).unwrap();
    assert_eq!(poll(&mut body), piece("data: 1\n\n"));
    assert_eq!(poll(&mut body), Poll::Pending);
}

#[test]
fn a_named_event_has_its_name_first_and_text_never_breaks_a_line() {
    let mut events = EventBuffer::default();
    events.push_named("ping", &json!({"text": "a\nb\r\u{2028}"}));
    events.push_done();
    let expected = "event: ping\ndata: {\"text\":\"a\\nb\\r\u{2028}\"}\n\ndata: [DONE]\n\n";
    assert_eq!(events.take(), expected);
}
