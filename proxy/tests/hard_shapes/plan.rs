//! What one exchange does, and what may come of it.

use std::io::Read;

use http::HeaderMap;

/// The filters of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Buffer,
    Gzip,
    Authz,
    Duplex,
    All,
}

impl Shape {
    pub const ALL: [Self; 5] = [
        Self::Buffer,
        Self::Gzip,
        Self::Authz,
        Self::Duplex,
        Self::All,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Buffer => "buffer",
            Self::Gzip => "gzip",
            Self::Authz => "authz",
            Self::Duplex => "duplex",
            Self::All => "all",
        }
    }

    fn gzips(self) -> bool {
        matches!(self, Self::Gzip | Self::All)
    }

    fn authorizes(self) -> bool {
        matches!(self, Self::Authz | Self::All)
    }

    fn processes(self) -> bool {
        matches!(self, Self::Duplex | Self::All)
    }
}

/// What the buffer filter takes.
pub const BUFFER_LIMIT: usize = 400_000;

/// What goes wrong, at `Plan::at` bytes where that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    ClientResetsRequest,
    ClientResetsResponse,
    ClientStalls,
    BackendCloses,
    BackendRefuses,
    BackendStalls,
    /// Not wrong, but early: the response comes before the request's body was read.
    BackendIsEarly,
    Denied,
    AuthzFails,
    TooLarge,
    ProcessorAnswersHead,
    ProcessorAnswersBody,
    ProcessorAnswersResponse,
    ProcessorFails,
}

/// One exchange.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub shape: Shape,
    pub http2: bool,
    pub up2: bool,
    pub request: usize,
    pub response: usize,
    pub fault: Fault,
    pub at: usize,
    /// Whether sides pause between their pieces.
    pub pauses: bool,
    /// Whether the processor collects a body before it sends it on.
    pub collects: bool,
}

/// How an exchange ended for the client.
pub enum Ending {
    /// A response, complete or cut off.
    Response {
        status: u16,
        headers: HeaderMap,
        body: Vec<u8>,
        complete: bool,
    },
    /// None.
    Nothing,
}

impl Ending {
    pub fn brief(&self) -> String {
        match self {
            Self::Response {
                status,
                headers,
                body,
                complete,
            } => {
                let text = String::from_utf8_lossy(&body[..body.len().min(120)]);
                format!(
                    "{status}, {} bytes, complete: {complete}, {headers:?}, {text:?}",
                    body.len()
                )
            }
            Self::Nothing => "no response".into(),
        }
    }
}

impl Plan {
    pub fn calm(shape: Shape, http2: bool, up2: bool, fault: Fault) -> Self {
        Self {
            seed: 7,
            shape,
            http2,
            up2,
            request: 0,
            response: 0,
            fault,
            at: 0,
            pauses: false,
            collects: false,
        }
    }

    pub fn random(random: &mut fastrand::Rng) -> Self {
        use Fault as F;
        let shape = Shape::ALL[random.usize(..Shape::ALL.len())];
        let mut faults = vec![
            F::None,
            F::None,
            F::None,
            F::ClientResetsRequest,
            F::ClientResetsResponse,
            F::BackendCloses,
            F::BackendRefuses,
            F::BackendIsEarly,
        ];
        if shape == Shape::Buffer {
            faults.push(F::TooLarge);
        }
        if shape.authorizes() {
            faults.extend([F::Denied, F::AuthzFails]);
        }
        if shape.processes() {
            faults.extend([
                F::ProcessorAnswersHead,
                F::ProcessorAnswersBody,
                F::ProcessorAnswersResponse,
                F::ProcessorFails,
            ]);
        }
        let fault = faults[random.usize(..faults.len())];
        let mut size = || match random.u8(..4) {
            0 => 0,
            1 => random.usize(1..200),
            2 => random.usize(200..20_000),
            _ => random.usize(20_000..300_000),
        };
        let (mut request, mut response) = (size(), size());
        match fault {
            F::ClientResetsRequest | F::ProcessorAnswersBody => request = request.max(2),
            F::ClientResetsResponse | F::BackendCloses => response = response.max(2),
            F::TooLarge => request += BUFFER_LIMIT + 1,
            _ => {}
        }
        let most = match fault {
            F::ClientResetsRequest | F::ProcessorAnswersBody => request,
            F::ClientResetsResponse | F::BackendCloses => response,
            F::ProcessorFails => request + response + 1,
            _ => 1,
        };
        Self {
            seed: random.u64(..),
            shape,
            http2: random.bool(),
            up2: random.bool(),
            request,
            response,
            fault,
            at: random.usize(..most),
            pauses: random.bool(),
            collects: random.bool(),
        }
    }

    /// The backend's part of the plan, as a path.
    pub fn path(&self) -> String {
        let fault = match self.fault {
            Fault::BackendCloses => "closes",
            Fault::BackendRefuses => "refuses",
            Fault::BackendStalls => "stalls",
            Fault::BackendIsEarly => "early",
            _ => "none",
        };
        let Self {
            seed,
            response,
            at,
            pauses,
            ..
        } = self;
        format!("/{fault}/{seed}/{response}/{at}/{pauses}")
    }

    /// The services' parts of the plan, and the route's.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("x-up", if self.up2 { "2" } else { "1" }.to_owned()),
            ("accept-encoding", "gzip".to_owned()),
        ];
        let authz = match self.fault {
            Fault::Denied => "deny",
            Fault::AuthzFails => "fail",
            _ => "allow",
        };
        headers.push(("x-authz", authz.to_owned()));
        let processor = match self.fault {
            Fault::ProcessorAnswersHead => "head",
            Fault::ProcessorAnswersBody => "body",
            Fault::ProcessorAnswersResponse => "response",
            Fault::ProcessorFails => "fails",
            _ => "none",
        };
        headers.push((
            "x-proc",
            format!("{processor} {} {}", self.at, self.collects),
        ));
        headers
    }

    /// The request's body as the client sends it.
    pub fn request_body(&self) -> Vec<u8> {
        pattern(self.seed, self.request)
    }

    /// The request's body as the backend must see it, told by its length and a sum.
    pub fn request_seen(&self) -> String {
        let mut body = self.request_body();
        if self.shape.processes() {
            turn(&mut body);
        }
        sum(&body)
    }

    /// Whether the ending is one that this plan may have.
    pub fn judge(&self, ending: &Ending) -> Result<(), String> {
        use Fault as F;
        let Ending::Response {
            status,
            headers,
            body,
            complete,
        } = ending
        else {
            return match self.fault {
                F::ClientResetsRequest | F::ClientResetsResponse | F::BackendCloses => Ok(()),
                F::BackendIsEarly | F::ProcessorFails | F::ProcessorAnswersBody => Ok(()),
                _ => Err("no response".into()),
            };
        };
        let exact = || self.judge_body(headers, body, *complete);
        let want = |wanted: &[u16]| match wanted.contains(status) && *complete {
            true => Ok(()),
            false => Err(format!("not one of {wanted:?} in full")),
        };
        match self.fault {
            F::None if *status == 200 && *complete => {
                let seen = headers.get("x-got").map(|v| v.to_str().unwrap());
                if seen != Some(&self.request_seen()) {
                    return Err(format!("the backend saw {seen:?}"));
                }
                exact()
            }
            F::None => Err("not a whole 200".into()),
            F::Denied => want(&[403]),
            F::AuthzFails => want(&[500]),
            // A client that is still sending when the answer comes may not get to read it.
            F::TooLarge => want(&[413]),
            F::ProcessorAnswersHead => want(&[418]),
            F::BackendRefuses => want(&[502, 503]),
            F::ProcessorAnswersResponse => want(&[418]),
            _ if *status == 200 => exact(),
            F::ProcessorAnswersBody => want(&[418]),
            F::ProcessorFails => want(&[500]),
            F::BackendCloses => want(&[502, 503]),
            _ => Ok(()),
        }
    }

    /// Whether the response's bytes are what they must be, or a part of that if it was cut off.
    fn judge_body(&self, headers: &HeaderMap, body: &[u8], complete: bool) -> Result<(), String> {
        let mut plain = body.to_vec();
        if headers.get("content-encoding").is_some_and(|v| v == "gzip") {
            if !self.shape.gzips() {
                return Err("compressed by nobody".into());
            }
            let mut inflated = Vec::new();
            let read = flate2::read::GzDecoder::new(body).read_to_end(&mut inflated);
            if complete && let Err(error) = read {
                return Err(format!("bad gzip: {error}"));
            }
            plain = inflated;
        }
        if self.shape.processes() {
            turn(&mut plain);
        }
        let expected = pattern(self.seed, self.response);
        if complete && plain != expected {
            return Err(format!(
                "{} bytes instead of {}, or others",
                plain.len(),
                expected.len()
            ));
        }
        if !expected.starts_with(&plain) {
            return Err("other bytes".into());
        }
        Ok(())
    }
}

/// What the processor does to bytes; twice is nothing.
pub fn turn(bytes: &mut [u8]) {
    for byte in bytes {
        *byte ^= 0x20;
    }
}

/// Bytes that are the same for the same seed, that compress a little, and whose order shows.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.u32(..).to_le_bytes()[..3]);
        bytes.push(b'.');
    }
    bytes.truncate(length);
    bytes
}

/// A body by its length and a sum that knows the order.
pub fn sum(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(1u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    });
    format!("{}-{sum}", bytes.len())
}

/// `bytes` in pieces of random length.
pub fn pieces(bytes: &[u8], random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let most = if random.bool() { 40_000 } else { 300 };
        let (piece, left) = rest.split_at(random.usize(1..=most).min(rest.len()));
        pieces.push(piece.to_vec());
        rest = left;
    }
    pieces
}
