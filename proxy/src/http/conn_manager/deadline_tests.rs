use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::http::testing::stream_info;

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits {
        request: Some(SECOND),
        whole: Some(SECOND * 3),
        idle: Some(SECOND * 2),
    }
}

#[test]
fn the_first_limit_strikes_first() {
    let info = Rc::new(RefCell::new(stream_info()));
    let start: Instant = info.borrow().last_activity.into();
    let at = |seconds| start + SECOND * seconds;
    let limits = limits();
    assert_eq!(limits.next(start, &info), Some(at(1)));
    assert_eq!(limits.struck(start, start, &info), None);
    assert_eq!(limits.struck(start, at(1), &info), Some(Struck::Request));
    info.borrow_mut().request_end = Some(std::time::Instant::now());
    assert_eq!(limits.next(start, &info), Some(at(2)));
    assert_eq!(limits.struck(start, at(1), &info), None);
    assert_eq!(limits.struck(start, at(2), &info), Some(Struck::Idle));
    assert_eq!(limits.struck(start, at(3), &info), Some(Struck::Whole));
}

#[test]
fn activity_puts_the_idle_timeout_off_and_nothing_else() {
    let info = Rc::new(RefCell::new(stream_info()));
    let active: Instant = info.borrow().last_activity.into();
    let start = active - SECOND;
    info.borrow_mut().request_end = Some(std::time::Instant::now());
    let limits = limits();
    assert_eq!(limits.next(start, &info), Some(start + SECOND * 3));
    assert_eq!(limits.struck(start, start + SECOND * 2, &info), None);
    let without_idle = Limits {
        idle: None,
        ..limits
    };
    assert_eq!(without_idle.next(start, &info), Some(start + SECOND * 3));
    let none = Limits {
        whole: None,
        request: None,
        idle: None,
    };
    assert_eq!(none.next(start, &info), None);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_answers_is_not_disturbed() {
    let info = Rc::new(RefCell::new(stream_info()));
    let scope = crate::telemetry::stats::Stats::new().scope("");
    let stats = ConnectionManagerStats::new(&scope, &scope);
    let clock = Clock::new(limits(), &info);
    let stream = async { Ok::<_, Stop>(7) };
    assert!(matches!(
        clock.race(pin!(stream), &stats, &info).await,
        Ok(7)
    ));
    // The route makes it shorter while the stream runs.
    let stream = async {
        clock.limits.set(Limits {
            whole: Some(Duration::ZERO),
            ..limits()
        });
        std::future::pending::<Result<(), Stop>>().await
    };
    let Err(Stop::Reply(reply)) = clock.race(pin!(stream), &stats, &info).await else {
        panic!("no reply");
    };
    assert_eq!(
        (reply.status.as_u16(), &*reply.details),
        (408, "max_duration_timeout")
    );
}
