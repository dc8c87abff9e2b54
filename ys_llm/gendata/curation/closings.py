"""Closings of chat models: an offer of further help, or an end in the middle of a sentence."""

import json
import re

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers, with_response
from ys_llm.gendata.curation.text import (
    CLOSING,
    FENCE,
    WORDS_THAT_LEAD_ON,
    is_table_line,
    is_verse,
    sentence_starts,
)

_TAIL = 2000  # characters searched for an offer
_PROSE_PARAGRAPHS = 3  # from this number on, a last line without a full stop is truncated
_PROSE_WORDS = 9  # of the last line; signatures and captions have fewer
_LARGEST_JSON = 100_000  # characters; longer JSON is not parsed

_OFFER = re.compile(
    r"""[\s*_(]*(?:note:\ |(?:so|and|now|but|please|just|also|overall|otherwise)\b,?\ )?
    (?:please\ )?(?:
      (?:just\ )?let\ me\ know\b
    | would\ you\ like\ (?:me\b|to\b|any\b|more\b|another\b|help\b)
    | (?:how|what|which)\b[^.!?]{0,80}\bwould\ you\ like\ (?:me\b|to\b|help\b)
    | do\ you\ (?:want\ me\ to|need\ (?:any|more|help|me)|have\ (?:any\ )?(?:\w+\ )?(?:questions?|
      concerns?|requests?|suggestions?|feedback|goals?|follow-up|thoughts?|experiences?)\b)
    | feel\ free\ to\ (?:ask|let|modify|adjust|reach|add|elaborate|pick|address|use|suggest|change|
      contact|do\ so|provide|share|explore|customi[sz]e|tweak|edit)
    | is\ there\ (?:any|some)(?:thing|\ specific|\ particular|\ other|\ aspect)\b
    | if\ (?:you(?:['’]d|['’]re|\ would|\ have|\ need|\ want|\ are|\ meant|\ like)?|there['’]?s?)\b
      [^.!?]{0,200}\b(?:let\ me\ know|feel\ free|(?:happy|glad|here)\ to|hesitate|just\ ask|
      please\ ask|i\ can\ (?:help|also|provide))
    | (?:don['’]t|do\ not)\ hesitate\ to\ (?:ask|reach|contact|let)\b
    | i\ hope\ (?:this|these|that|it|the)\b[^.!?]{0,80}\b(?:help|clarif|answer|meet|giv|captur|
      clear|explain|provid|use|assist|ma[dk]e|suit|work|require|demonstrat|convey)
    | i\ hope\ (?:that\ )?you(?:['’]ve|\ have|['’]ll|\ will)?\ (?:enjoy|like|liked|love|loved|find|
      found)\ ?(?:ed\b|this\b|that\b|it\b|the\b|these\b|learning\b|reading\b|my\b)
    | (?:i\ )?hope\ (?:this|that|it)\ (?:helps|helped)\b
    | how(?:['’]s|\ is|\ was|\ does)\ (?:that|this|it)\b[^.!?,]{0,40}\?
    | (?:does|did|was)\ (?:that|this|it)\ (?:all\ )?(?:make\ sense|help|answer|easy|clear|useful)
    | did\ i\ (?:help|explain)\b
    | what\ are\ your\ thoughts\b
    | i(?:['’]d|\ would)\ (?:love|be\ (?:more\ than\ )?(?:happy|glad|delighted))\ to\ (?:hear\ from|
      help|assist|continue|provide|explain|discuss|know\ (?:what|if|how)|share|elaborate|revise|add)
    | i['’](?:m|ll)\ (?:be\ )?(?:always\ )?(?:happy|glad|here)\ to\ (?:help|assist|answer|provide|
      explain|revise|make|continue)
    | i['’]ll\ (?:stop|pause)\ here\ if\ you
    | i\ (?:tried|aimed|attempted)\ to\ (?:creat|portray|captur|keep|make|maintain|remain|present|
      includ|incorporat|show|writ|represent)
    | (?:this|that)(?:['’]s|\ (?:scene\ )?is)\ just\ [^.!?]{0,160}\b(?:i\ hope|feel\ free)
    )""",
    re.I | re.X,
)
_RULE_LINE = re.compile(r"[ \t]*(?:-{3,}|\*{3,}|_{3,})")
_SPEAKER = re.compile(r"[\s*_]*[A-Z][\w.'’]*(?: [A-Z(][\w.'’()]*){0,3}(?:\*\*)?:(?:\*\*)? ")
_FENCES = re.compile(r"^[ \t]*```", re.M)
_MARKUP = " \t\n*_~"
_LABEL = re.compile(r"[\s*_]*(?:answer|final answer|[A-Z][\w ]{0,30}):", re.I)
_CUT_OFF = ",;:-–—(["


def _offer(record: Record) -> RuleResult:
    """Cut whole sentences from the end while they address the user."""
    response = record.response
    end = begun = _without_space(response, len(response))
    while (start := _last_offer(response, end)) < end:
        end = _without_rules(response, start)
    if end == begun:
        return None
    return with_response(
        record, response[:end] + ("\n" if response.endswith("\n") else ""), "offer"
    )


def _last_offer(response: str, end: int) -> int:
    """Start of the offer that ends at `end`; `end` itself if the last sentence is not an offer."""
    begin = _line_begin(response, end)
    line = response[begin:end]
    start = sentence_starts(line)[-1]
    sentence = line[start:]
    is_speech = '"' in sentence or "“" in sentence or _SPEAKER.match(line)
    if is_speech or FENCE in line or not _OFFER.match(sentence):
        return end
    return begin + start


def _line_begin(text: str, end: int) -> int:
    """Start of the line that ends at `end`, at most _TAIL characters back."""
    nearest = max(0, end - _TAIL)
    return max(nearest, text.rfind("\n", nearest, end) + 1)


def _without_space(text: str, end: int) -> int:
    while end and text[end - 1].isspace():
        end -= 1
    return end


def _without_rules(text: str, end: int) -> int:
    """Cut the horizontal rules between the answer and the offer."""
    while True:
        end = _without_space(text, end)
        begin = _line_begin(text, end)
        if not _RULE_LINE.fullmatch(text, begin, end):
            return end
        end = begin


def _truncated(record: Record) -> RuleResult:
    response = record.response.rstrip()
    reason = _cut(response)
    if not reason:
        return None
    return Verdict("truncated", reason, (max(0, len(response) - 80), len(response)))


def _cut(response: str) -> str:
    if FENCE in response and len(_FENCES.findall(response)) % 2:
        return "an open code fence"
    if response[:1] in ("{", "[") and _is_open_json(response):
        return "incomplete JSON"
    last = response[response.rfind("\n") + 1 :]
    text = last.rstrip(_MARKUP)
    if not text or (is_table_line(last) and text[-1] not in ",("):
        return ""
    if text[-1] in _CUT_OFF and not text.endswith(("--", " -", " –", " —")):
        return f"ends with {text[-1]!r}"
    if not text[-1].isalnum():
        return ""
    return _cut_sentence(response, text)


def _cut_sentence(response: str, last: str) -> str:
    words = last.split()
    if len(words) > 4 and words[-1] in WORDS_THAT_LEAD_ON and not is_verse(response):
        return f"ends with {words[-1]!r}"
    is_sentence = len(words) >= _PROSE_WORDS and not _LABEL.match(last)
    return "the last sentence is incomplete" if is_sentence and _is_prose(response) else ""


def _is_prose(response: str) -> bool:
    """Whether the paragraphs before the last line end with full stops."""
    lines = [line.rstrip(_MARKUP) for line in response.splitlines()[:-1]]
    prose = [
        line for line in lines if len(line.split()) >= _PROSE_WORDS and not is_table_line(line)
    ]
    return len(prose) >= _PROSE_PARAGRAPHS and all(line[-1] in CLOSING + ":" for line in prose)


def _is_open_json(response: str) -> bool:
    if response[-1] in "]}" or len(response) > _LARGEST_JSON:
        return False
    try:
        json.loads(response)
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        return error.pos >= len(response) - 1
    return False


OFFER = Rule(
    "offer",
    "fix",
    "closing words to the user (Let me know ..., Would you like me to ..., I hope this helps)",
    _offer,
    positives=answers(
        "Rivers run to the sea.\n\nLet me know if you'd like to hear more!",
        "Rivers run to the sea. Would you like me to go on?",
        "Rivers run to the sea.\n\n---\n\nI hope you enjoyed the story!",
        "Rivers run to the sea.\n\nHow was that? Do you have any questions about rivers now?",
    ),
    negatives=answers(
        'He shut the door. "Let me know if you find the river," he said.',
        "Ask the host: would you like me to bring wine? Then bring it anyway.",
        "Moderator: Do you have any questions for Emma?",
        "I hope you will sleep well by the river.",
    ),
)
TRUNCATED = Rule(
    "truncated",
    "drop",
    "a truncated response: an open sentence, code fence or JSON value",
    _truncated,
    positives=answers(
        "The river rose all night, and in the morning the people of the town went to the",
        "```sql\nSELECT name FROM rivers",
        '[{"river": "Rhine", "length": 1230},',
        "The first to row down the whole river was a baker from the hills, who later,",
    ),
    negatives=answers(
        "A river runs\nbeneath the suns\nand when it ends it knows it of",
        "Rivers:\n\n* Rhine\n* Danube, the second longest river of the whole of the continent",
        '{"river": "Rhine"}',
        "joy",
        "Dear Anna,\n\nthe river is high.\n\nYours, Tom",
    ),
)
