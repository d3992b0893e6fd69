"""Every error this package raises on purpose.

UnlearnServeError
├── DataError               a training or evaluation file is not what it should be
├── FormatError             an adapter, a release, a gate or a list of servers breaks its format's rules
│   ├── ManifestError           manifest.json: not JSON, unknown keys, bad values
│   ├── AdapterFileError        adapter files: header, names, shapes, dtypes, NaN
│   └── DigestError             a file's bytes are not those its digest names
├── TrustError              what was read may not be served, though its bytes are sound
│   ├── KeyFileError            a key file is not an Ed25519 key
│   ├── Unsigned                no trusted key signed it
│   ├── BadSignature            a signature that is not one of these bytes by that key
│   ├── HistoryBroken           a signed channel entry that does not descend from what was applied
│   └── DropsDeletions          a channel's move gives back what was deleted, and does not say so
├── AuditError              an audit log was changed, or does not fit what it speaks of
├── BaseModelMismatch       the adapter was trained for another base model
├── UnsupportedModel        no feed-forward module found, or an architecture out of reach
├── TrainingError           training cannot start or did not reach its target
├── FusionError             these adapters cannot be fused
├── GateError               an adapter's scores miss a gate's thresholds
├── StoreError
│   ├── StoreUnavailable        the store cannot be reached or read
│   │   └── DowngradeRefused        the store is older than what was seen of it
│   ├── ReleaseNotFound
│   ├── ChannelNotFound
│   └── ChannelConflict         somebody moved the channel first
└── ServingError
    ├── NotEnforced             the engine runs without enforced unlearning layers
    ├── SwapError               a swap was aborted; the earlier release keeps serving
    └── RouteRefused            a request names a release that it cannot be served under
        └── NotCovered              that release does not cover the default's deletion ids

Messages say what was expected, what was got, and the way out, in one line.
"""


class UnlearnServeError(Exception):
    """Base of all errors below; the CLI prints its message on one line and exits with 1."""


class DataError(UnlearnServeError):
    """A training or evaluation file is not what it should be; names file and line."""


class FormatError(UnlearnServeError):
    """An adapter, a release, a gate or a list of servers breaks its format's rules."""


class ManifestError(FormatError):
    """manifest.json is not valid: not JSON, unknown keys, values out of range."""


class AdapterFileError(FormatError):
    """An adapter file is not valid: header, tensor names, shapes, dtypes, NaN or inf."""


class DigestError(FormatError):
    """A file's bytes are not those that its digest names."""


class TrustError(UnlearnServeError):
    """What was read may not be served, though its bytes are those that its digest names."""


class KeyFileError(TrustError):
    """A key file cannot be read, or holds no Ed25519 key."""


class Unsigned(TrustError):
    """No trusted key signed this manifest or channel entry."""


class BadSignature(TrustError):
    """A trusted key's signature is there, but not of these bytes."""


class HistoryBroken(TrustError):
    """A channel entry is signed, but does not descend from what was applied: signed for another store, perhaps."""


class DropsDeletions(TrustError):
    """A channel's move no longer covers deletion requests that were covered, and does not say so."""


class AuditError(UnlearnServeError):
    """An audit log was changed, or does not fit what it speaks of."""


class BaseModelMismatch(UnlearnServeError):
    """The adapter was trained for another base model than the one at hand."""


class UnsupportedModel(UnlearnServeError):
    """No feed-forward module was found, or the architecture is out of reach."""


class TrainingError(UnlearnServeError):
    """Training cannot start, or ended without reaching its target."""


class FusionError(UnlearnServeError):
    """These adapters cannot be fused."""


class GateError(UnlearnServeError):
    """An adapter's scores miss thresholds of a gate, or it has none; it is not to be published."""


class StoreError(UnlearnServeError):
    """Base of the store's errors."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or read."""


class DowngradeRefused(StoreUnavailable):
    """The store is older than what was seen of it: emptied, restored from a backup, or set back by somebody."""


class ReleaseNotFound(StoreError):
    """The store holds no release of that digest."""


class ChannelNotFound(StoreError):
    """The store holds no channel of that name."""


class ChannelConflict(StoreError):
    """Somebody else moved the channel first; read it again and decide anew."""


class ServingError(UnlearnServeError):
    """Base of the serving errors."""


class NotEnforced(ServingError):
    """The engine runs without enforced unlearning layers: it must not become ready."""


class SwapError(ServingError):
    """A swap was aborted on every worker; the earlier release keeps serving."""


class RouteRefused(ServingError):
    """A request names a release under which this server cannot serve it; other requests are not concerned."""


class NotCovered(RouteRefused):
    """The named release does not cover every deletion id of the channel's release."""
