"""Configuration: TOML and environment in, one checked value out; and where tokens are found."""

from agent.config.directories import SOCKET_PATH_LIMIT, Directories, runtime_directory, state_directory
from agent.config.loading import PREFIX, TURBO_VARIABLES, VARIABLES, Places, control_socket, load
from agent.config.schema import (
    DEFAULT_URL,
    KEYS,
    RESTART_KEYS,
    Config,
    DestinationConfig,
    ForwardConfig,
    KeysError,
    differences,
    needs_restart,
)
from agent.config.tokens import (
    TOKEN_VARIABLES,
    TokenFiles,
    exposed_token_files,
    find_token,
    read_http_tokens,
    read_token,
    read_token_file,
    token_files,
    token_source,
    token_variable,
)

__all__ = [
    "DEFAULT_URL",
    "KEYS",
    "PREFIX",
    "RESTART_KEYS",
    "SOCKET_PATH_LIMIT",
    "TOKEN_VARIABLES",
    "TURBO_VARIABLES",
    "VARIABLES",
    "Config",
    "DestinationConfig",
    "Directories",
    "ForwardConfig",
    "KeysError",
    "Places",
    "TokenFiles",
    "control_socket",
    "differences",
    "exposed_token_files",
    "find_token",
    "load",
    "needs_restart",
    "read_http_tokens",
    "read_token",
    "read_token_file",
    "runtime_directory",
    "state_directory",
    "token_files",
    "token_source",
    "token_variable",
]
