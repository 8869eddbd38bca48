"""Closed grammars that say what synthesized voices read.

A grammar maps a symbol to alternatives separated by `|`; within one, words in
angle brackets are symbols. `commands` is a list of command words, `sentences`
a household assistant's language of about 300 words.
"""

import functools
from collections.abc import Mapping

import numpy as np

DIGITS = 'zero one two three four five six seven eight nine'

COMMANDS = (
  'backward|forward|up|down|left|right|stop|go|start|follow|yes|no|on|off|'
  'open|close|enable|disable|ok|cancel|options|send|receive|record|rotate|'
  'zoom in|zoom out|move|next|previous|happy|learn|visual|house|tree|bird|'
  'wow|marvin|sheila|bed'
)

SENTENCES = {
  'start': (
    '<polite><order>|<polite><order> <when>|<order> and then <order>|'
    '<question>|<question> <when>|<statement>|<name> <statement>|'
    '<order> because <statement>'
  ),
  'polite': '|please |could you |i want you to |<name> please ',
  'name': ('anna|peter|maria|robert|julia|thomas|helen|oscar'),
  'order': (
    'turn <onoff> the <device> in the <room>|'
    'turn the <device> <onoff>|'
    'set the <device> to <level>|'
    'set the <room> temperature to <number> degrees|'
    'open the <opening> in the <room>|close the <opening>|lock the <opening>|'
    'play some <genre> music|play the <adjective> song by <name>|'
    'call <person>|call <name> at <time>|'
    'send <person> a <adjective> <message>|'
    'read the <adjective> <message> from <person>|'
    'remind me to <chore>|remind <name> to <chore>|'
    'buy <number> <measure> of <food>|add <food> to the shopping list|'
    'cook <food> with <food> for <person>|'
    'bring the <colour> <thing> to the <room>|'
    'put the <thing> <place> the <furniture>|'
    'book a <vehicle> from <city> to <city>|'
    'find a <adjective> <shop> near <city>|'
    'show me the way to the <shop>|'
    'wake me at <time>|start a timer for <number> minutes|'
    'repeat channel <digit> <digit> <digit>'
  ),
  'question': (
    'what is the weather in <city>|will it <weather> in <city>|'
    'who is at the <opening>|where did <name> leave the <colour> <thing>|'
    'how many <measure> of <food> do we have|'
    'how far is <city> from <city>|'
    'when does the <vehicle> to <city> leave|'
    'is the <device> in the <room> <onoff>|'
    'which <shop> sells <adjective> <food>|'
    'why is the <thing> so <adjective>'
  ),
  'statement': (
    'the <device> in the <room> is <adjective>|'
    'i lost my <colour> <thing> in <city>|'
    'we need <number> <measure> of <food>|'
    'my <family> likes the <colour> <thing>|'
    'the <animal> is <place> the <furniture>|'
    '<name> and <name> travel to <city> by <vehicle>|'
    'the <colour> <animal> ate the <food>|'
    'it will <weather> <when>|'
    'the code is <digit> <digit> <digit> <digit>'
  ),
  'onoff': 'on|off',
  'device': ('light|lamp|heater|oven|fan|radio|television|camera|alarm'),
  'room': ('kitchen|bedroom|bathroom|garage|garden|office|living room'),
  'opening': 'door|window|gate|garage|curtain|front door|back door',
  'level': 'low|medium|high|maximum|<number> percent',
  'number': '<tens>|<tens> <ones>|<ones>|<teen>',
  'tens': 'twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety',
  'teen': (
    'ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|'
    'nineteen'
  ),
  'ones': 'two|three|four|five|six|seven|eight|nine',
  'digit': 'zero|one|<ones>',
  'genre': 'jazz|rock|folk|dance|piano',
  'adjective': (
    'new|old|quiet|loud|cheap|broken|short|long|warm|cold|strange|last'
  ),
  'person': '<name>|my <family>|the doctor|the teacher|the neighbour',
  'family': ('mother|father|brother|sister|daughter|uncle|aunt'),
  'message': 'message|letter|picture|report',
  'chore': (
    'water the plants|feed the <animal>|wash the <thing>|pay the bill|'
    'clean the <room>|fix the <device>|walk the dog|call <person>|'
    'buy <food>|empty the <furniture>|visit <person>'
  ),
  'measure': 'bottles|boxes|bags|pounds|cups',
  'food': (
    'bread|butter|cheese|milk|rice|sugar|coffee|chicken|fish|soup|'
    'potatoes|tomatoes|apples|bananas|chocolate|honey'
  ),
  'colour': 'red|green|blue|yellow|black|white|brown|grey',
  'thing': ('jacket|shirt|shoe|book|key|phone|umbrella|bicycle|plate|knife'),
  'place': 'under|behind|beside|above|inside|near',
  'furniture': ('table|sofa|chair|shelf|drawer|bed|basket|fridge'),
  'vehicle': 'train|bus|plane|ferry|taxi|car',
  'city': ('london|paris|berlin|madrid|rome|vienna|dublin|boston|sydney|tokyo'),
  'shop': ('bakery|library|museum|hotel|market|station|hospital'),
  'animal': 'cat|dog|horse|bird|mouse|sheep',
  'weather': 'rain|snow|be sunny|be windy',
  'time': (
    '<hour> o clock|half past <hour>|quarter to <hour>|<hour> thirty|'
    'noon|midnight'
  ),
  'hour': 'one|<ones>|ten|eleven|twelve',
  'when': (
    'tomorrow|today|tonight|at <time>|on <day>|every <day>|'
    'in <number> minutes|next week|this evening|on the <ordinal> of <month>'
  ),
  'day': 'monday|tuesday|wednesday|thursday|friday|saturday|sunday',
  'ordinal': 'first|second|third|fifth|tenth|twelfth',
  'month': (
    'january|february|march|april|may|june|july|august|september|october|'
    'november|december'
  ),
}


@functools.cache
def _alternatives(text: str) -> tuple[tuple[str, ...], ...]:
  """Each alternative as literal, symbol, literal, ..., literal."""
  return tuple(
    tuple(piece for part in alternative.split('<') for piece in part.split('>'))
    for alternative in text.split('|')
  )


def generate(
  rng: np.random.Generator,
  grammar: Mapping[str, str] = SENTENCES,
  symbol: str = 'start',
) -> str:
  """Draws one string of the grammar; every alternative is equally likely.

  Args:
    rng: Where the choices come from.
    grammar: Symbol -> alternatives.
    symbol: What to expand.

  Returns:
    Words separated by single spaces.
  """
  choices = _alternatives(grammar[symbol])
  pieces = choices[int(rng.integers(len(choices)))]
  return ''.join(
    generate(rng, grammar, piece) if k % 2 else piece
    for k, piece in enumerate(pieces)
  )


def vocabulary(grammar: Mapping[str, str] = SENTENCES) -> list[str]:
  """Returns every word the grammar can say, sorted.

  Args:
    grammar: Symbol -> alternatives.
  """
  words: set[str] = set()
  for text in grammar.values():
    for pieces in _alternatives(text):
      words.update(*(literal.split() for literal in pieces[::2]))
  return sorted(words)
