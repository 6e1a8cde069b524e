//! The records of one connection: a session, with the bytes that wait on either side of it.

use rustls::Error;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, WriteTraffic};

use super::session::Session;
use crate::transport::buffer::Buffer;

/// The most that is read before it has been understood: as in rustls, a handshake's message.
const MAX_INCOMPLETE: usize = 0xffff;
/// What a record adds to its content, at most; and how much content a record has.
const RECORD_OVERHEAD: usize = 64;
const RECORD: usize = 16 * 1024;

/// What shall be sent.
#[derive(Clone, Copy)]
pub(super) enum Outbound<'a> {
    Nothing,
    Data(&'a [u8]),
    /// That nothing more will be.
    CloseNotify,
}

/// A session between the bytes that came and those that go.
pub(super) struct Records<S> {
    pub(super) session: S,
    /// Came and is not understood yet.
    pub(super) incoming: Buffer,
    /// Goes to the peer.
    pub(super) outgoing: Buffer,
    /// The peer said that it sends nothing more.
    pub(super) peer_closed: bool,
    /// Broken: the session must not be asked again.
    pub(super) failed: bool,
}

impl<S: Session> Records<S> {
    pub(super) fn new(session: S, incoming: Buffer) -> Self {
        Self {
            session,
            incoming,
            outgoing: Buffer::default(),
            peer_closed: false,
            failed: false,
        }
    }

    /// Understands what came: content goes to `deliver`, what TLS itself has to say to `outgoing`, and then
    /// `outbound`. Tells whether that was taken: it is not before the handshake's end.
    ///
    /// # Errors
    /// What came breaks TLS; an alert that says so is in `outgoing`. Or the keys are used up.
    pub(super) fn drive(
        &mut self,
        outbound: Outbound<'_>,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, Error> {
        if self.failed {
            return Err(Error::General(
                "the connection has failed before".to_owned(),
            ));
        }
        let driven = self.drive_on(outbound, deliver);
        if driven.is_err() {
            self.failed = true;
        }
        driven
    }

    fn drive_on(
        &mut self,
        mut outbound: Outbound<'_>,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, Error> {
        let mut taken = false;
        loop {
            let status = self.session.step(self.incoming.filled());
            let mut discard = status.discard;
            let mut done = false;
            match status.state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        deliver(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.outgoing)?,
                // Whoever drives sends what is outgoing, in order.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                Ok(ConnectionState::WriteTraffic(traffic)) => {
                    let outbound = std::mem::replace(&mut outbound, Outbound::Nothing);
                    taken |= write(traffic, outbound, &mut self.outgoing)?;
                    done = true;
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => {
                    done = true;
                }
                // Early data is never offered nor accepted.
                Ok(_) => return Err(Error::General("unexpected early data".to_owned())),
                Err(error) => {
                    self.last_words(deliver);
                    return Err(error);
                }
            }
            self.incoming.consume(discard);
            // What was queued for want of room comes out with the next step.
            if done && !self.session.state().wants_write() {
                return self.bounded().map(|()| taken);
            }
        }
    }

    /// Takes out the alert that goes with an error. The session is asked only while it has something to say: another
    /// look at what came would be another error.
    fn last_words(&mut self, deliver: &mut dyn FnMut(&[u8])) {
        while self.session.state().wants_write() {
            match self.session.step(self.incoming.filled()).state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    if encode(data, &mut self.outgoing).is_err() {
                        return;
                    }
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        deliver(record.payload);
                    }
                }
                _ => return,
            }
        }
    }

    fn bounded(&self) -> Result<(), Error> {
        match self.incoming.len() {
            ..=MAX_INCOMPLETE => Ok(()),
            _ => Err(Error::General("message buffer full".to_owned())),
        }
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, outgoing: &mut Buffer) -> Result<(), Error> {
    let mut wanted = RECORD_OVERHEAD;
    loop {
        match data.encode(outgoing.room(wanted)) {
            Ok(n) => {
                outgoing.grow(n);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(error)) if error.required_size > wanted => {
                wanted = error.required_size;
            }
            Err(error) => return Err(Error::General(error.to_string())),
        }
    }
}

fn write<D>(
    mut traffic: WriteTraffic<'_, D>,
    outbound: Outbound<'_>,
    outgoing: &mut Buffer,
) -> Result<bool, Error> {
    let encrypted = match outbound {
        Outbound::Nothing => return Ok(false),
        Outbound::Data(data) => {
            let mut wanted = data.len() + (data.len() / RECORD + 1) * RECORD_OVERHEAD;
            loop {
                match traffic.encrypt(data, outgoing.room(wanted)) {
                    // Answers to changes of keys go along.
                    Err(EncryptError::InsufficientSize(error)) if error.required_size > wanted => {
                        wanted = error.required_size;
                    }
                    other => break other,
                }
            }
        }
        Outbound::CloseNotify => match traffic.queue_close_notify(outgoing.room(RECORD)) {
            // It is queued all the same.
            Err(EncryptError::InsufficientSize(_)) => Ok(0),
            other => other,
        },
    };
    match encrypted {
        Ok(n) => {
            outgoing.grow(n);
            Ok(true)
        }
        Err(error) => Err(Error::General(error.to_string())),
    }
}
