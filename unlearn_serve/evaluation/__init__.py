"""How much was forgotten and how much was kept, before and after unlearning or live on a server; and the gate on it."""

from unlearn_serve.evaluation.evaluate import evaluate, evaluate_served
from unlearn_serve.evaluation.gate import Gate
from unlearn_serve.evaluation.measures import Measure, Measures
from unlearn_serve.evaluation.page import write_report
from unlearn_serve.evaluation.record import RECORD_NAME, Results, read_reference, write_record
from unlearn_serve.evaluation.scores import Scores

__all__ = [
    "RECORD_NAME",
    "Gate",
    "Measure",
    "Measures",
    "Results",
    "Scores",
    "evaluate",
    "evaluate_served",
    "read_reference",
    "write_record",
    "write_report",
]
