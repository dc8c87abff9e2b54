"""Closings of chat models: an offer of further help."""

import re

from ys_llm.data.records import Record
from ys_llm.gendata.curation.feedback import holds_no_request
from ys_llm.gendata.curation.rule import Rule, RuleResult, answers, with_response
from ys_llm.gendata.curation.text import FENCE, sentence_starts

_TAIL = 2000  # characters searched for an offer

_OFFER = re.compile(
    r"""[\s*_(]*(?:note:\ |(?:so|and|now|but|please|just|also|overall|otherwise)\b,?\ )?
    (?:please\ )?(?:
      (?:just\ )?let\ me\ know\b
    | would\ you\ like\ (?:me\b|to\b|any\b|more\b|another\b|help\b)
    | (?:how|what|which)\b[^.!?]{0,80}\bwould\ you\ like\ (?:me\b|to\b|help\b|
      (?:this|the)\ (?:scene|story|tale|debate|conversation|dialogue)\ to\b)
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
    | (?:i\ )?hope\ (?:that\ )?you(?:['’]ve|\ have|['’]ll|\ will)?\ (?:enjoy|like|liked|love|loved|
      find|found)\ ?(?:ed\b|this\b|that\b|it\b|the\b|these\b|learning\b|reading\b|my\b)
    | (?:i\ )?hope\ (?:this|that|it)\ (?:helps|helped)\b
    | how(?:['’]s|\ is|\ was|\ does)\ (?:that|this|it)\b[^.!?,]{0,40}\?
    | (?:does|did|was)\ (?:that|this|it)\ (?:all\ |explanation\ |answer\ |example\ )?
      (?:make\ sense|help|answer|easy|clear|useful)
    | did\ i\ (?:help|explain|make)\b
    | what\ are\ your\ thoughts\b
    | (?:so,?\ )?what\ do\ you\ think\?\s*$
    | (?:which|what)\b[^.!?]{0,80}\b(?:resonates?\ with\ you|would\ you\ like\ me)\b
    | (?:which|what)\ (?:methods?|tips?|steps?|strateg(?:y|ies)|options?|approach|technique|
      of\ these)\b[^.!?]{0,60}\byou\b[^.!?]{0,60}\?
    | (?:wow,\ )?you['’]re\ so\ smart!
    | (?:so,\ )?that['’]s\ (?:an?\ )?[^.!?]{0,60}(?:explanation\ of|in\ simple\ terms)\b
    | i(?:['’]d|\ would)\ (?:love|be\ (?:more\ than\ )?(?:happy|glad|delighted))\ to\ (?:hear\ from|
      help|assist|continue|provide|explain|discuss|know\ (?:what|if|how)|share|elaborate|revise|add)
    | i['’](?:m|ll)\ (?:be\ )?(?:always\ )?(?:happy|glad|here)\ to\ (?:help|assist|answer|provide|
      explain|revise|make|continue)
    | i['’]ll\ (?:stop|pause)\ here\ if\ you
    | i\ (?:tried|aimed|attempted)\ (?:my\ best\ )?to\ (?:creat|portray|captur|keep|make|maintain|
      remain|present|includ|incorporat|show|writ|represent)
    | (?:this|that)(?:['’]s|\ (?:scene\ )?is)\ just\ [^.!?]{0,160}\b(?:i\ hope|feel\ free)
    )""",
    re.I | re.X,
)
_OVER = re.compile(  # in a line that ends with an offer
    r"[\s*_(]*(?:(?:so|and|well|wow),?\ )?(?:there\ you\ (?:have\ it|go)|"
    r"that['’]s\ (?:it|all|(?:a\ lot\ about|the\ basic\ idea\ of)\b[^.!?]{0,60}))[!.]",
    re.I | re.X,
)
_THANKS = re.compile(
    r"[\s*_]*(?:and\ )?thank(?:s|\ you)\ (?:so\ much\ |again\ )?for\ (?:highlighting|sharing|"
    r"bringing|pointing|emphasi[sz]ing|raising|providing|reminding|summari[sz]ing)\b",
    re.I | re.X,
)
_RULE_LINE = re.compile(r"[ \t]*(?:-{3,}|\*{3,}|_{3,})")
_SPEAKER = re.compile(r"[\s*_]*[A-Z][\w.'’]*(?: [A-Z(][\w.'’()]*){0,3}(?:\*\*)?:(?:\*\*)? ")


def _offer(record: Record) -> RuleResult:
    """Cut whole sentences from the end while they address the user."""
    response = record.response
    end = begun = _without_space(response, len(response))
    thanks = holds_no_request(record.prompt)  # for a text; in a letter they are right
    while (start := _last_offer(response, end, thanks=thanks)) < end:
        end = _without_rules(response, start)
    if end == begun:
        return None
    return with_response(
        record, response[:end] + ("\n" if response.endswith("\n") else ""), "offer"
    )


def _last_offer(response: str, end: int, *, thanks: bool) -> int:
    """Start of the offer that ends at `end`; `end` itself if the last sentence is not an offer."""
    begin = _line_begin(response, end)
    line = response[begin:end]
    start = sentence_starts(line)[-1]
    sentence = line[start:]
    is_speech = '"' in sentence or "“" in sentence or _SPEAKER.match(line)
    is_offer = _OFFER.match(sentence) or (thanks and _THANKS.match(sentence))
    if is_speech or FENCE in line or not is_offer:
        return end
    if start and (
        _OFFER.match(line) or _OVER.match(line)
    ):  # what stands between two offers speaks of the answer too
        return begin
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


OFFER = Rule(
    "offer",
    "fix",
    "closing words to the user (Let me know ..., Would you like me to ..., I hope this helps)",
    _offer,
    positives=answers(
        "Rivers run to the sea.\n\nLet me know if you'd like to hear more!",
        "Rivers run to the sea. Would you like me to go on?",
        "Rivers run to the sea.\n\n---\n\nI hope you enjoyed the story!",
        "Rivers run to the sea.\n\nHope you enjoyed this!",
        "Rivers run.\n\nHow was that? The poem is short. Let me know if you'd like a longer one.",
        "Rivers run to the sea.\n\nHow was that? Do you have any questions about rivers now?",
        "Rivers run to the sea.\n\nThat's it! Rivers. I hope this explanation helped you.",
        "Row with both arms, or paddle.\n\nWhich method do you think will work for you?",
        "Rivers run to the sea.\n\nWhat do you think?",
        "Rivers run.\n\nThat's the basic idea of rivers! They are old. Would you like more?",
    ),
    negatives=answers(
        'He shut the door. "Let me know if you find the river," he said.',
        "Ask the host: would you like me to bring wine? Then bring it anyway.",
        "Moderator: Do you have any questions for Emma?",
        "The river froze.\n\nWhat do you think of a river that does not run?",
        "I hope you will sleep well by the river.",
        "We rowed to the other side. That's it! The river was ours.",
        "Dear Anna,\n\nThe river rises.\n\nThank you for sharing your boat with us.",
    ),
)
