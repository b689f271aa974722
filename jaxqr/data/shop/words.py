"""The words of the synthetic shop: what the catalogue calls things, what shoppers do.

Every entry has both languages. The catalogue never uses a shopper's phrase; each has
at least one word that occurs in no product text, and often another that does, for
something else: shoppers' "dark red" is the catalogue's "burgundy", but "red" is a
colour of its own. Most frequent values come first.
"""

from typing import NamedTuple


class Term(NamedTuple):
    """One meaning: how the catalogue words it, how shoppers may word it instead."""

    catalogue: tuple[str, ...]
    shopper: tuple[str, ...] = ()


def _terms(table: str) -> dict[str, Term]:
    """Parses lines `catalogue wording, ... = shopper's wording, ...`."""
    terms = {}
    for line in table.strip().splitlines():
        catalogue, _, shopper = line.partition("=")
        wordings = tuple(text.strip() for text in catalogue.split(","))
        others = tuple(text.strip() for text in shopper.split(",") if text.strip())
        terms[wordings[0]] = Term(wordings, others)
    return terms


FACETS: dict[str, dict[str, Term]] = {
    "color": _terms("""
        black, onyx = blk, noir
        white, snow = wht, pure milk white
        charcoal, graphite = dark grey, dark gray
        navy, midnight = dark blue, indigo
        red, crimson = bright red, cherry
        burgundy, merlot = dark red, maroon, wine red
        blue, cobalt = azure, royal blue
        teal, petrol = turquoise, aqua, greenish blue
        green, emerald = grassy green, lime
        sage, eucalyptus = light green, pale green
        blush, rose = pink, light pink
        mustard, amber = yellow, golden
        tan, camel = beige, light brown
        brown, cocoa = chocolate, tawny brown
        ivory, eggshell = off white, cream
        lavender, lilac = purple, violet
        silver, platinum = chrome, metallic grey
    """),
    "material": _terms("""
        leather, full-grain leather = cowhide, genuine hide
        suede, nubuck = velvety hide, buffed skin
        canvas, duck cloth = sail fabric, sailcloth
        mesh, knit = netted, airy fabric
        cotton, combed cotton = cottony, tshirt cloth
        wool, merino = woolen, woolly
        fleece, sherpa = fluffy, fuzzy
        linen, flax = hemp like, linnen cloth
        nylon, ripstop = parachute fabric, synthetic
        polyester, microfiber = poly fabric, man made fibre
        denim, chambray = jean fabric, jeans cloth
        down, goose down = feathers, feather filled
        stainless steel, brushed steel = metal, inox
        aluminum, alloy = aluminium, light metal
        cast iron, iron = heavy skillet metal, ferrous
        ceramic, stoneware = porcelain, clay
        glass, borosilicate = see through, pyrex style
        bamboo, cane = bambu, grass wood
        oak, hardwood = wooden, timber
        walnut, walnut veneer = wood brown, nut wood
        plastic, polymer = acrylic, plasticky
        silicone, elastomer = rubbery, gel
        velvet, chenille = velour, plushy
        rattan, wicker = basket weave, straw
        foam, memory foam = spongy, squishy
        jute, sisal = rope fibre, burlap
    """),
    "style": _terms("""
        classic, timeless = traditional, old fashioned
        modern, contemporary = minimalist, sleek
        vintage, heritage = retro, old school
        bohemian, artisan = boho, hippie
        floral, botanical = flowery, flower print
        striped, pinstripe = stripey, lines pattern
        plaid, tartan = checkered, chequered
        slim, tapered = skinny, narrow
        oversized, relaxed = baggy, loose
        compact, space-saving = tiny, mini
        rugged, heavy-duty = tough, sturdy
        rustic, farmhouse = country look, cottage
        professional, chef-grade = pro level, restaurant quality
        playful, whimsical = cute, funny
    """),
    "audience": _terms("""
        women = women's, ladies, womens, female
        men = men's, guys, mens, male
        kids, children = childs, youth
        infants, newborns = babies, baby
        seniors, older adults = elderly, grandma
        beginners, starters = newbie, first timer
        professionals, experts = pros, serious users
        large breeds, large dogs = big dog, labrador
        small breeds, small dogs = little dog, chihuahua
    """),
    "feature": _terms("""
        waterproof, weatherproof = rainproof, keeps water out
        lightweight, featherlight = light weight, easy to carry
        non-slip, high-grip = anti skid, does not slide
        insulated, thermal = warm, keeps warm
        breathable, ventilated = airy, does not sweat
        stretch, flexible = stretchy, bendy
        washable, machine-washable = easy clean, can be washed
        wireless, Bluetooth = cordless, without wires
        noise-cancelling, ANC = blocks noise, sound blocking
        fast-charging, quick-charge = rapid, charges quick
        shockproof, drop-tested = unbreakable, survives falls
        rechargeable, USB-powered = with battery, plug in
        programmable, automatic = with timer, self start
        non-stick, coated = nothing sticks, stickless
        dishwasher-safe, easy-rinse = goes in dishwasher, washer proof
        leakproof, sealed = spill proof, no leaks
        adjustable, telescopic = extendable, changeable height
        foldable, collapsible = foldaway, folds up
        dimmable, three-level = brightness control, soft glow
        blackout, opaque = room darkening, light blocking
        reversible, two-sided = both sides, double face
        cooling, moisture-wicking = cool, for hot sleepers
        organic, plant-based = natural, chemical free
        fragrance-free, hypoallergenic = unscented, sensitive skin
        orthopedic, ergonomic = for back pain, joint support
        padded, cushioned = comfy, thick soft
        lockable, anti-theft = with lock, secure
    """),
}
"""Facet -> value (named by its first catalogue wording) -> its wordings."""


BRANDS: dict[str, tuple[tuple[str, float], ...]] = {
    "footwear": (
        ("Stridewell", 1.0),
        ("Corvane", 1.7),
        ("Tamsole", 0.6),
        ("Ardenfoot", 1.2),
        ("Pellico", 0.8),
    ),
    "clothing": (
        ("Norvale", 1.0),
        ("Linthorpe", 1.8),
        ("Basiq", 0.6),
        ("Wexmoor", 1.3),
        ("Tamsole", 0.7),
        ("Ostrava", 0.9),
    ),
    "electronics": (
        ("Voltane", 1.0),
        ("Zephyra", 1.9),
        ("Ohmly", 0.6),
        ("Kestrin", 1.3),
        ("Pixelor", 0.8),
    ),
    "kitchen": (
        ("Saverne", 1.0),
        ("Copperell", 1.7),
        ("Homble", 0.6),
        ("Brantwick", 1.2),
        ("Cucinetta", 0.9),
    ),
    "home": (
        ("Hearthby", 1.0),
        ("Lumenor", 1.4),
        ("Homble", 0.6),
        ("Solvang", 1.8),
        ("Tessera", 0.9),
    ),
    "outdoor": (
        ("Cairnway", 1.0),
        ("Fjellmark", 1.7),
        ("Trampa", 0.6),
        ("Verdanta", 1.1),
    ),
    "sports": (
        ("Kinetra", 1.0),
        ("Fjellmark", 1.6),
        ("Trampa", 0.7),
        ("Ascendo", 1.3),
        ("Pulsebay", 0.8),
    ),
    "family": (
        ("Tumbly", 1.0),
        ("Nestorie", 1.6),
        ("Bramblekin", 0.7),
        ("Poppetto", 1.2),
    ),
    "pets": (("Waggery", 1.0), ("Barkwell", 1.5), ("Bramblekin", 0.7)),
    "beauty": (
        ("Aurelle", 1.0),
        ("Silvane", 1.7),
        ("Dewberry", 0.7),
        ("Mirabeau", 1.2),
    ),
}
"""Department -> (name, price relative to the type's median)."""

TITLES = tuple(
    tuple(template.split("|"))
    for template in (
        "{brand}|{audience}|{type}|- {color}|{material}|, {size}",
        "{brand}|{feature}|{type}|for {audience}|, {material}|, {color}",
        "{brand}|{style}|{type}|in {color}|{material}|for {audience}",
        "{type}|by {brand}|, {material}|, {feature}|, {size}",
        "{color}|{material}|{type}|for {audience}|, {brand}",
        "{brand}|{style}|{color}|{type}|, {feature}|, {size}",
        "{feature}|{type}|, {style}|, {color}|, {brand}|{size}",
    )
)
"""Title templates in chunks; a chunk whose word the product lacks is left out."""

FACTS = (
    "Made of {material}",
    "Color: {color}",
    "{feature} design",
    "Size: {size}",
    "{style} look",
    "Designed for {audience}",
    "A {style} {type}",
    "{feature} and built to last",
)
"""Sentences that are true of the product; those that lack a word are left out."""

CHATTER = (
    "A thoughtful gift for a birthday or an anniversary.",
    "Made for everyday use, at the office or on holiday.",
    "Arrives in recyclable packaging.",
    "Backed by a two-year warranty and friendly support.",
    "A favorite of our customers this summer.",
    "Great for a weekend trip, a wedding or a party.",
    "Designed in small batches by our own team.",
    "Easy returns within thirty days.",
    "Loved by students, teachers and busy parents.",
    "Quality checked by hand before it leaves our warehouse.",
    "Perfect for a daughter, a son or a best friend.",
    "Your partner for school, work and travel.",
)
"""Sentences that say nothing about the product, but share words with `EXTRAS`."""

OTHERS = ("Pairs well with our {type}.", "Also sold in {color}.", "Not for {audience}.")
"""Sentences that name what the product is not."""

EXTRAS = (
    "for my daughter",
    "for my son birthday",
    "gift for best friend",
    "for everyday use",
    "for the office",
    "for school",
    "for a wedding party",
    "for weekend trip",
    "for summer holiday",
    "anniversary gift",
    "cheap",
    "on sale",
    "best rated",
    "with warranty",
    "that arrives fast",
    "i need",
    "looking for",
    "good quality",
    "under budget",
    "for work and travel",
)
"""What shoppers add to a query without constraining the product."""
