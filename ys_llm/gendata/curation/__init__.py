"""Curation: rules that fix or drop records, removal of duplicates, and a report of both."""

from ys_llm.gendata.curation.curate import curate_folder
from ys_llm.gendata.curation.explain import explain
from ys_llm.gendata.curation.report import CurationReport
from ys_llm.gendata.curation.rule import Curated, Edit, Rule, Verdict, apply_rules
from ys_llm.gendata.curation.rules import RULE_SETS, STANDARD, rules_named
from ys_llm.gendata.curation.worker import LengthLimits

__all__ = [
    "RULE_SETS",
    "STANDARD",
    "Curated",
    "CurationReport",
    "Edit",
    "LengthLimits",
    "Rule",
    "Verdict",
    "apply_rules",
    "curate_folder",
    "explain",
    "rules_named",
]
