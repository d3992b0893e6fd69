"""What can be shown afterwards: logs checked against each other, and a receipt for each deletion request."""

from unlearn_serve.audit.collect import issue_receipt
from unlearn_serve.audit.page import receipt_page
from unlearn_serve.audit.receipt import Receipt, read_receipt, sign_receipt
from unlearn_serve.audit.server_log import ServerLog, missing_heads

__all__ = ["Receipt", "ServerLog", "issue_receipt", "missing_heads", "read_receipt", "receipt_page", "sign_receipt"]
