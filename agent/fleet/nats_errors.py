"""What nats-py raises, as the errors of `agent.fleet.engine`, in words that say what to do."""

import ssl
from typing import Final

import nats.errors
from nats.js import errors as js_errors

from agent.fleet.engine import EngineError, MessageTooLargeError, StreamFullError

_WRONG_LAST_SEQUENCE: Final = (10071, 10164)
_NOT_SET_UP: Final = (10014, 10059)  # no such consumer, no such stream
_TOO_LARGE: Final = (10054,)
_STORE_FAILED: Final = (10077,)  # for whatever reason, which its text says
_RUN_INIT: Final = "run `artifacts-agent fleet init`"
_UNKNOWN_ISSUER: Final = (18, 19, 20, 21)  # of OpenSSL's X509_V_ERR: signed by itself, or by whom nobody here trusts
_NOT_ALLOWED: Final = (nats.errors.AuthorizationError, nats.errors.InvalidUserCredentialsError)
_AUTHENTICATION: Final = ("authorization", "authentication", "permissions violation", "revoked")


class NotFoundError(EngineError):
    """There is no such message."""


class WrongLastSequenceError(EngineError):
    """A subject's last message is another one."""


def engine_error(error: Exception) -> EngineError:
    """Return what an error of nats-py's, or of the socket, means."""
    if isinstance(error, nats.errors.NoRespondersError | js_errors.NoStreamResponseError):
        return EngineError(f"nobody answers: it is starting, or electing, or there is no fleet yet: {_RUN_INIT}")
    if isinstance(error, nats.errors.MaxPayloadError):
        return MessageTooLargeError("the server takes no message as large as this one")
    if isinstance(error, js_errors.APIError):
        return _api_error(error)
    return EngineError(text_of(error))


def _api_error(error: js_errors.APIError) -> EngineError:
    text = error.description or text_of(error)
    if isinstance(error, js_errors.KeyWrongLastSequenceError) or error.err_code in _WRONG_LAST_SEQUENCE:
        return WrongLastSequenceError(text)
    if isinstance(error, js_errors.ServiceUnavailableError) and error.description is None:
        return EngineError("JetStream does not answer: it is starting, electing a leader, or not set up")
    if error.err_code in _STORE_FAILED and "exceeded" in text:
        return StreamFullError(text)
    if error.err_code in _TOO_LARGE:
        return MessageTooLargeError(text)
    if isinstance(error, js_errors.BucketNotFoundError):
        return EngineError(f"there is no fleet yet: {_RUN_INIT}")
    if error.err_code in _NOT_SET_UP:
        return EngineError(f"{text}: {_RUN_INIT}")
    if isinstance(error, js_errors.NotFoundError):
        return NotFoundError(text)
    return EngineError(text)


def text_of(error: BaseException) -> str:
    """Return what an error says, or else its kind."""
    if isinstance(error, ssl.SSLCertVerificationError):
        see = ": see SSL_CERT_FILE" if error.verify_code in _UNKNOWN_ISSUER else ""
        return f"certificate verify failed: {error.verify_message.rstrip('.')}{see}"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error).removeprefix("nats: ") or type(error).__name__


def is_denied(error: BaseException, said: str) -> bool:
    """Whether the server has turned a connection away for its credentials, by the error or by what the server `said`."""
    return isinstance(error, _NOT_ALLOWED) or any(word in said.lower() for word in _AUTHENTICATION)
