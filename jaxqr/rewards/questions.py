"""What a language model is asked as a shopper, and how its answers are read.

After MiniELM's Table 7, in words of our own: who the shopper is, what was searched for,
what the shop shows, and then one question, for clicks, additions to the cart and
purchases. What is the same in all conversations comes first, so that a server can keep
it (prefix caching). The rewrite is never shown.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxqr.records import Hits, Interactions, Product
from jaxqr.rewards.profiles import Profile

Message = dict[str, str]
"""`role` and `content`, as chat templates and servers take them."""
Position = Sequence[tuple[str, float]]
"""The likeliest tokens at one place of an answer, and their probabilities."""

Job = tuple[list[Message], int]
"""A conversation that ends with a question, and the largest number for answer."""

LONGEST_LIST = 99
"""Numbers of more than two digits are not read."""
TITLE_CHARACTERS = 120
"""A title is cut to this."""
NEGLIGIBLE = 0.01
"""Probability of a first digit below which it is taken for the whole number."""
MIN_MASS = 0.1
"""Probability that the numbers 0 to n must have together."""

SHOPPER = (
    "You are a shopper in an online shop. You are told who you are, what you searched "
    "for and which products the shop shows you, and asked how many of these products "
    "you would choose. Think of your own needs and means: a product that does not fit "
    "your search is of no use, whatever its title says. Answer with one whole number "
    "and nothing else."
)
QUESTIONS = {
    "click": "How many of these {n} products would you click on, to see more of them?",
    "add_to_cart": "How many of these {n} products would you add to your cart?",
    "purchase": "How many of these {n} products would you buy?",
}
RANGE = " Answer with a whole number from 0 to {n}."

SAME_SEARCH = (
    "You compare two searches in an online shop. Do they ask for the same thing, so "
    "that a shopper with one of them would be content with the results of the other? "
    "Answer with yes or no and nothing else."
)


def describe(profile: Profile) -> str:
    """A shopper in words; what does not matter to them is left out.

    >>> describe(Profile("female", 30, "city", 50000, 0.8, ("Acme",), "", "wool"))
    'You are female, 30 years old, live in a city and earn $50,000 a year. You look \
closely at prices. You like the brand Acme. You like wool.'
    """
    article = "the " if profile.location == "countryside" else "a "
    place = f"live in {article}{profile.location}" if profile.location else ""
    facts = [
        *([profile.gender] if profile.gender else []),
        f"{profile.age} years old",
        *([place] if place else []),
    ]
    text = f"You are {', '.join(facts)} and earn ${profile.income:,} a year."
    sensitive = profile.price_sensitivity
    text += (
        " You look closely at prices."
        if sensitive > 2 / 3
        else " You hardly look at prices."
        if sensitive < 1 / 3
        else " You want a fair price."
    )
    if brands := profile.brand_affinity:
        plural = "brands" if len(brands) > 1 else "brand"
        text += f" You like the {plural} {', '.join(brands)}."
    if profile.style:
        text += f" Your style is {profile.style}."
    if profile.material:
        text += f" You like {profile.material}."
    return text


def product_line(product: Product) -> str:
    """A product on one line: title, brand, color and price, as far as known."""
    title = " ".join(product.title.split())[:TITLE_CHARACTERS]
    facts = [title, product.brand, product.color]
    if product.price is not None:
        facts.append(f"${product.price:,.2f}")
    return " | ".join(fact for fact in facts if fact)


def conversation(
    question: str, profile: Profile, query: str, products: Sequence[Product]
) -> list[Message]:
    """The messages that ask one of `QUESTIONS` about a list."""
    lines = [f"{i}. {product_line(p)}" for i, p in enumerate(products, 1)]
    text = (QUESTIONS[question] + RANGE).format(n=len(products))
    content = "\n\n".join(
        [describe(profile), f"You searched for: {query}", "\n".join(lines), text]
    )
    return [
        {"role": "system", "content": SHOPPER},
        {"role": "user", "content": content},
    ]


def judge_lists(
    ask: Callable[[list[Job]], Sequence[float]],
    queries: Sequence[str],
    hits: Hits,
    profiles: Sequence[Profile],
    products: Mapping[str, Product],
    *,
    both_orders: bool,
    seed: int,
    count: Callable[[str], None],
) -> Interactions:
    """Asks the three questions about every list.

    The rate of an interaction is the number for answer over the length of the list.

    Args:
        ask: the number that each conversation is answered with; NaN where it is not.
        queries: what was typed.
        hits: the lists.
        profiles: who looks through each.
        products: the catalogue by id.
        both_orders: whether to ask about every list in two orders, one the reverse of
            the other, and to average.
        seed: draws other orders where it differs.
        count: is told why a list is not judged: `no_list`, `unknown_product`.

    Raises:
        ValueError: a list is longer than `LONGEST_LIST`.
    """
    jobs: list[Job] = []
    places: list[tuple[int, int]] = []  # row and column of each
    for row, (query, ids, profile) in enumerate(
        zip(queries, hits.ids.tolist(), profiles, strict=True)
    ):
        listed = [product_id for product_id in ids if product_id]
        if len(listed) > LONGEST_LIST:
            raise ValueError(
                f"a list of {len(listed)} products, expected at most {LONGEST_LIST}"
            )
        if not listed or not all(i in products for i in listed):
            count("unknown_product" if listed else "no_list")
            continue
        place = order(seed, query, listed)
        for shown in (place, place[::-1])[: 1 + both_orders]:
            texts = [products[listed[i]] for i in shown]
            for column, question in enumerate(QUESTIONS):
                jobs.append((conversation(question, profile, query, texts), len(texts)))
                places.append((row, column))
    sums = np.zeros((len(queries), len(QUESTIONS)))
    asked = np.zeros(len(queries), np.bool_)
    for (row, column), (_, most), number in zip(places, jobs, ask(jobs), strict=True):
        sums[row, column] += number / most  # NaN stays
        asked[row] = True
    rates = sums / (1 + both_orders)
    valid = asked & np.isfinite(rates).all(axis=1)
    click, add, buy = np.where(valid[:, None], rates, 0.0).astype(np.float32).T
    return Interactions(click, add, buy, valid)


def same_search(one: str, other: str) -> list[Message]:
    """The messages that ask whether two queries are equivalent."""
    return [
        {"role": "system", "content": SAME_SEARCH},
        {"role": "user", "content": f"First search: {one}\nSecond search: {other}"},
    ]


def order(seed: int, query: str, ids: Sequence[str]) -> np.ndarray:
    """In which order a list is shown: models favor places, so places are drawn.

    The same query and list are always shown alike.
    """
    name = "\x00".join([str(seed), query, *ids]).encode(errors="surrogatepass")
    digest = hashlib.blake2b(name, digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    return rng.permutation(len(ids))


def number(text: str, most: int) -> int | None:
    """The whole number that an answer is, cut to 0..`most`; None: it is none.

    >>> number(" 7.", 20), number("30", 20), number("about 7", 20), number("-1", 20)
    (7, 20, None, 0)
    """
    found = re.fullmatch(r"\s*(-?[0-9]{1,9})\s*\.?\s*", text)
    return None if found is None else min(max(int(found[1]), 0), most)


def longer(text: str, most: int) -> bool:
    """Whether a number of 0..`most` begins with these digits and goes on.

    >>> longer("1", 20), longer("3", 20), longer("0", 20)
    (True, False, False)
    """
    return text != "0" and int(text) * 10 <= most


def expected_number(
    first: Position, after: Callable[[str], Position | None], most: int
) -> float | None:
    r"""The mean of the numbers 0..`most` under a model's next tokens.

    A number's weight is the probability of its tokens, times that of no further digit
    where a longer number begins like it. Weights are divided by their sum.

    Args:
        first: what the answer may begin with.
        after: what may follow digits that the answer begins with; None: not known.
        most: at most `LONGEST_LIST`.

    Returns:
        None if the numbers have less than `MIN_MASS` together, or if what follows some
        digits is needed and not known.

    >>> after = {"1": [("0", 0.5), ("\n", 0.5)]}.get
    >>> round(expected_number([("1", 0.8), ("4", 0.1), ("The", 0.1)], after, 10), 3)
    5.333
    """
    weights = np.zeros(most + 1)
    for token, probability in first:
        text = token.strip()
        if not _is_number(text, most):
            continue
        if not longer(text, most) or probability < NEGLIGIBLE:
            weights[int(text)] += probability
            continue
        following = after(text)
        if following is None:
            return None
        digits = [(t, p) for t, p in following if t[:1].isascii() and t[:1].isdigit()]
        weights[int(text)] += probability * max(1 - sum(p for _, p in digits), 0)
        for token_after, p in digits:
            if _is_number(whole := text + token_after.strip(), most):
                weights[int(whole)] += probability * p
    total = weights.sum()
    if total < MIN_MASS:
        return None
    return float(weights @ np.arange(most + 1) / total)


def probability_of_yes(first: Position) -> float | None:
    """P(yes) / (P(yes) + P(no)) under a model's next tokens; None: too little of both.

    >>> probability_of_yes([("Yes", 0.25), ("no", 0.125), (" yes", 0.125), ("I", 0.5)])
    0.75
    """
    mass = {"yes": 0.0, "no": 0.0}
    for token, p in first:
        if (word := token.strip().lower()) in mass:
            mass[word] += p
    total = sum(mass.values())
    return mass["yes"] / total if total >= MIN_MASS else None


def yes_or_no(text: str) -> float | None:
    """1.0 for yes, 0.0 for no, None for anything else."""
    words: Mapping[str, float] = {"yes": 1.0, "no": 0.0}
    return words.get(text.strip().rstrip(".!").lower())


def _is_number(text: str, most: int) -> bool:
    """Whether a text is a number of 0..`most` as it is written: no sign, no zeros."""
    return (
        text.isascii()
        and text.isdigit()
        and str(int(text)) == text
        and (int(text) <= most)
    )
