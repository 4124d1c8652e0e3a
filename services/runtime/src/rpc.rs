//! Calls whose request and response are serde types, in postcard through the UTCB's payload.

use core::fmt;

use ipc_schema::abi::{CapTransfer, NEVER, Status, Tag};
use serde::{Serialize, de::DeserializeOwned};

use crate::ipc::{Endpoint, Message};
use crate::utcb;

/// Label of a request in postcard.
pub const REQUEST: u64 = 1;
/// Label of a reply that holds the response.
pub const RESPONSE: u64 = 0;
/// Label of the reply to a request that could not be decoded.
pub const BAD_REQUEST: u64 = 2;
/// Label of the reply when the response did not fit.
pub const TOO_LONG: u64 = 3;

/// Why a call brought no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The kernel's answer: no such capability, the deadline passed, the server died...
    Kernel(Status),
    /// The request does not fit into a message.
    RequestTooLong,
    /// The server did not understand the request.
    BadRequest,
    /// The server's response does not fit into a message.
    ResponseTooLong,
    /// The response is not of the expected type.
    BadResponse,
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Kernel(status)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(status) => write!(f, "the call failed: {status:?}"),
            Self::RequestTooLong => f.write_str("the request is longer than a message"),
            Self::BadRequest => f.write_str("the server did not understand the request"),
            Self::ResponseTooLong => f.write_str("the response is longer than a message"),
            Self::BadResponse => f.write_str("the response is not what was asked for"),
        }
    }
}

impl core::error::Error for CallError {}

impl Endpoint {
    /// Sends `request` and waits for the response, however long it takes.
    pub fn call_postcard<Q: Serialize + ?Sized, R: DeserializeOwned>(
        self,
        request: &Q,
    ) -> Result<R, CallError> {
        self.call_postcard_with(request, &[], NEVER)
    }

    /// Sends `request` with capabilities (at most four) and waits for the response or the deadline (absolute TSC).
    /// Capabilities that come back go to the slots opened with [`utcb::set_receive`].
    pub fn call_postcard_with<Q: Serialize + ?Sized, R: DeserializeOwned>(
        self,
        request: &Q,
        caps: &[CapTransfer],
        deadline: u64,
    ) -> Result<R, CallError> {
        let len = utcb::encode(request).map_err(|_| CallError::RequestTooLong)?;
        let caps = utcb::set_send(caps);
        let tag = Tag::new(REQUEST).with_payload(len).with_caps(caps);
        let reply = self.call_until(Message { tag, words: [0; 4] }, deadline)?;
        response(reply.tag)
    }
}

/// Takes the response out of the UTCB.
pub(crate) fn response<R: DeserializeOwned>(tag: Tag) -> Result<R, CallError> {
    match tag.label() {
        RESPONSE => utcb::decode(tag.payload()).map_err(|_| CallError::BadResponse),
        BAD_REQUEST => Err(CallError::BadRequest),
        TOO_LONG => Err(CallError::ResponseTooLong),
        _ => Err(CallError::BadResponse),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_apart() {
        let len = utcb::encode(&(1u8, 2u8)).unwrap();
        let tag = |label| Tag::new(label).with_payload(len);
        assert_eq!(response::<(u8, u8)>(tag(RESPONSE)), Ok((1, 2)));
        assert_eq!(response::<u8>(tag(RESPONSE)), Err(CallError::BadResponse));
        assert_eq!(response::<u8>(tag(BAD_REQUEST)), Err(CallError::BadRequest));
        assert_eq!(
            response::<u8>(tag(TOO_LONG)),
            Err(CallError::ResponseTooLong)
        );
        assert_eq!(response::<u8>(tag(77)), Err(CallError::BadResponse));
    }

    #[test]
    fn the_host_has_no_kernel() {
        let answer: Result<u8, _> = Endpoint(3).call_postcard(&1u8);
        assert_eq!(answer, Err(CallError::Kernel(Status::Unsupported)));
        let answer: Result<u8, _> = Endpoint(3).call_postcard(&[1u8; 3072][..]);
        assert_eq!(answer, Err(CallError::RequestTooLong));
    }
}
