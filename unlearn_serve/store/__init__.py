"""The store: immutable releases and channels that move by compare-and-swap, on a folder or an object store."""

from unlearn_serve.store.audit import AuditRecord
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.channel_entry import ChannelEntry
from unlearn_serve.store.garbage import Garbage
from unlearn_serve.store.releases import Release, ReleaseInfo
from unlearn_serve.store.store import Store
from unlearn_serve.store.verify import Problem

__all__ = ["AuditRecord", "Backend", "ChannelEntry", "Garbage", "Problem", "Release", "ReleaseInfo", "Store"]
