//! What is made of the frames that pass by.

use super::*;

fn frame(kind: Kind, stream: u32, length: usize, code: u32) -> Frame {
    Frame {
        kind,
        flags: 0,
        stream,
        length,
        code,
    }
}

fn watch(keep_connection: bool) -> Watch {
    Watch::new(FloodLimits::default(), keep_connection, Arc::default())
}

#[test]
fn floods_end_the_connection_at_their_limit() {
    let priorities = watch(false);
    for _ in 0..100 {
        priorities.received(frame(Kind::Priority, 1, 5, 0));
    }
    assert!(priorities.broken().is_none());
    priorities.received(frame(Kind::Priority, 1, 5, 0));
    assert!(priorities.broken().is_some());

    let windows = watch(false);
    windows.sending(frame(Kind::Data, 1, 9, 0));
    for _ in 0..25 {
        windows.received(frame(Kind::WindowUpdate, 0, 4, 0));
    }
    assert!(windows.broken().is_none());
    windows.received(frame(Kind::WindowUpdate, 0, 4, 0));
    assert!(windows.broken().is_some());

    let empty = watch(false);
    empty.received(frame(Kind::Data, 1, 0, 0));
    empty.received(frame(Kind::Data, 1, 1, 0));
    empty.received(frame(Kind::Data, 1, 0, 0));
    assert!(empty.broken().is_none());
    empty.received(frame(Kind::Data, 1, 0, 0));
    assert!(empty.broken().is_some());
}

#[test]
fn what_the_library_refuses_is_counted_once() {
    let strict = watch(false);
    strict.received(frame(Kind::Headers, 1, 9, 0));
    strict.sending(frame(Kind::Reset, 1, 4, PROTOCOL_ERROR));
    assert_eq!(strict.take_refused()[0], (1, INVALID_FIELD));
    assert_eq!((strict.take_refused()[0].0, strict.unseen()), (0, 0));
    assert_eq!(strict.fault(), Some(INVALID_FIELD));

    let lenient = watch(true);
    lenient.received(frame(Kind::Headers, 1, 9, 0));
    lenient.accepted(1);
    lenient.received(frame(Kind::Headers, 3, 9, 0));
    lenient.sending(frame(Kind::Reset, 3, 4, PROTOCOL_ERROR));
    assert_eq!(lenient.take_refused()[0].0, 1);
    assert!(lenient.fault().is_none());
}

#[test]
fn malformed_trailers_are_no_matter_of_the_body() {
    let watch = watch(false);
    watch.received(frame(Kind::Headers, 1, 9, 0));
    watch.accepted(1);
    watch.received(frame(Kind::Data, 1, 9, 0));
    watch.received(frame(Kind::Headers, 1, 9, 0));
    watch.sending(frame(Kind::Reset, 1, 4, PROTOCOL_ERROR));
    assert_eq!(watch.fault(), Some(BAD_MESSAGING));
}

#[test]
fn what_the_library_finds_too_much_has_its_cause() {
    let bomb = watch(false);
    bomb.received(frame(Kind::Headers, 1, 9, 0));
    bomb.sending(frame(Kind::GoAway, 0, 8, ENHANCE_YOUR_CALM));
    assert_eq!(bomb.take_refused()[1], (1, TOO_LARGE));
    assert!(bomb.fault().is_none(), "the library may say so");
    let resets = watch(false);
    for stream in 0..PREMATURE_RESET_STREAMS {
        resets.received(frame(Kind::Reset, 2 * stream + 1, 4, 8));
    }
    resets.sending(frame(Kind::GoAway, 0, 8, ENHANCE_YOUR_CALM));
    assert_eq!(resets.fault(), Some(PREMATURE_RESETS));
}

#[test]
fn a_body_of_the_wrong_length_costs_its_stream_only() {
    let watch = watch(false);
    watch.received(frame(Kind::Headers, 1, 9, 0));
    watch.received(frame(Kind::Data, 1, 9, 0));
    // What came along with it says nothing of it.
    watch.received(frame(Kind::Headers, 3, 9, 0));
    watch.received(frame(Kind::Data, 3, 9, 0));
    watch.sending(frame(Kind::Reset, 1, 4, PROTOCOL_ERROR));
    assert!(watch.fault().is_none());
    assert_eq!(watch.take_refused()[0].0, 0);
}
