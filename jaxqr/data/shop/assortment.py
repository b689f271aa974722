"""The kinds of product that the synthetic shop sells."""

from typing import NamedTuple

from jaxqr.data.shop.words import FACETS, Term


class ProductType(NamedTuple):
    """A kind of product; its name is the first of its catalogue wordings."""

    department: str
    family: str  # types of one family are substitutes for each other
    term: Term
    complements: tuple[str, ...]  # types used together with it, in both directions
    facets: dict[str, tuple[str, ...]]  # the values its products take, frequent first
    sizes: tuple[str, ...]
    price: float  # median, in dollars


def _types(table: str) -> dict[str, ProductType]:
    """Parses blocks of `key: value, ...;` entries, separated by empty lines."""
    types = {}
    for block in table.strip().split("\n\n"):
        entries = (entry.split(": ") for entry in " ".join(block.split()).split("; "))
        values = {key: tuple(value.split(", ")) for key, value in entries}
        types[values["type"][0]] = ProductType(
            department=values["in"][0],
            family=values["in"][1],
            term=Term(values["type"], values["said"]),
            complements=values.get("with", ()),
            facets={facet: values[facet] for facet in FACETS if facet in values},
            sizes=values.get("size", ()),
            price=float(values["price"][0]),
        )
    return types


TYPES: dict[str, ProductType] = _types("""
    type: athletic shoes, sport shoes; said: sneakers, trainers, running kicks;
    in: footwear, shoes; price: 70; with: insoles, crew socks;
    size: size 7, size 8, size 9, size 10;
    color: black, white, navy, red, charcoal, teal;
    material: mesh, leather, canvas, suede; style: modern, classic, vintage;
    audience: women, men, kids; feature: lightweight, non-slip, breathable

    type: ankle boots, short boots; said: booties, chelseas;
    in: footwear, boots; price: 95; with: insoles, boot polish;
    size: size 6, size 7, size 8, size 9;
    color: black, brown, tan, burgundy, charcoal; material: leather, suede, canvas;
    style: classic, vintage, modern, rugged; audience: women, men;
    feature: waterproof, non-slip, insulated

    type: slip-on loafers, moccasins; said: slippons, driving flats, penny flats;
    in: footwear, shoes; price: 80; with: insoles, boot polish;
    size: size 7, size 8, size 9, size 10;
    color: brown, black, tan, navy, burgundy; material: leather, suede, canvas;
    style: classic, modern, bohemian; audience: men, women;
    feature: padded, lightweight, non-slip

    type: hiking boots, trekking boots; said: mountain footgear, trail stompers;
    in: footwear, boots; price: 120; with: crew socks, insoles;
    size: size 7, size 8, size 9, size 10;
    color: brown, charcoal, green, black, tan; material: leather, nylon, suede;
    style: rugged, classic, modern; audience: men, women, kids;
    feature: waterproof, insulated, lightweight

    type: insoles, footbeds; said: shoe inserts, arch helpers;
    in: footwear, insoles; price: 22; size: small fit, medium fit, large fit;
    color: blue, black, green, charcoal; material: foam, silicone, wool;
    style: slim, professional; audience: men, women, seniors;
    feature: orthopedic, padded, breathable

    type: boot polish, leather balm; said: shoeshine, footwear wax;
    in: footwear, care; price: 11; size: 50 ml, 75 ml, 100 ml;
    color: black, brown, tan, burgundy; style: classic, professional;
    audience: beginners, professionals; feature: waterproof, organic, fragrance-free

    type: hooded sweatshirt, zip sweatshirt; said: hoodie, hoody, pullover;
    in: clothing, tops; price: 45; with: joggers; size: S, M, L, XL;
    color: black, charcoal, navy, burgundy, sage, blush;
    material: cotton, fleece, polyester; style: oversized, classic, vintage, striped;
    audience: men, women, kids; feature: washable, insulated, stretch

    type: crewneck tee, graphic tee; said: tshirt, shirt;
    in: clothing, tops; price: 20; with: joggers, denim trousers; size: S, M, L, XL;
    color: white, black, navy, mustard, teal, red;
    material: cotton, linen, polyester; style: classic, slim, striped, vintage;
    audience: men, women, kids; feature: breathable, washable, stretch

    type: denim trousers, five-pocket trousers; said: jeans, levis;
    in: clothing, bottoms; price: 60; with: waist belt, crewneck tee;
    size: waist 28, waist 30, waist 32, waist 34;
    color: blue, navy, black, white, charcoal; material: denim, cotton;
    style: slim, oversized, vintage, classic; audience: women, men, kids;
    feature: stretch, washable

    type: joggers, track bottoms; said: sweatpants, gym pants;
    in: clothing, bottoms; price: 38; with: hooded sweatshirt; size: S, M, L, XL;
    color: charcoal, black, navy, green, burgundy;
    material: fleece, cotton, polyester; style: slim, oversized, classic;
    audience: men, women, kids; feature: stretch, breathable, washable

    type: rain jacket, shell jacket; said: raincoat, slicker, windbreaker;
    in: clothing, jackets; price: 85; with: umbrella; size: S, M, L, XL;
    color: mustard, navy, green, black, red; material: nylon, polyester, canvas;
    style: modern, classic, oversized; audience: women, men, kids;
    feature: waterproof, breathable, foldable

    type: winter coat, puffer coat; said: parka, anorak;
    in: clothing, jackets; price: 140; with: knit beanie; size: S, M, L, XL;
    color: black, navy, burgundy, ivory, green; material: down, wool, polyester;
    style: classic, oversized, modern; audience: women, men, kids;
    feature: insulated, waterproof, lightweight

    type: crew socks, ribbed socks; said: sox, stockings, hosiery;
    in: clothing, socks; price: 14; size: pack of 3, pack of 6;
    color: black, white, charcoal, navy, mustard; material: cotton, wool, polyester;
    style: striped, classic, playful; audience: men, women, kids;
    feature: padded, breathable, insulated

    type: waist belt, buckle belt; said: strap for pants, cinch;
    in: clothing, belts; price: 28; size: 34 in, 38 in, 42 in;
    color: brown, black, tan, navy; material: leather, canvas, suede;
    style: classic, vintage, modern; audience: men, women, kids;
    feature: reversible, adjustable

    type: knit beanie, watch beanie; said: woolly hat, skullcap, toque;
    in: clothing, hats; price: 19; with: winter coat;
    color: charcoal, black, mustard, burgundy, navy; material: wool, fleece, cotton;
    style: classic, oversized, striped; audience: women, men, kids;
    feature: insulated, reversible, stretch

    type: umbrella, storm umbrella; said: brolly, parasol;
    in: clothing, umbrellas; price: 25; with: rain jacket;
    color: black, navy, red, teal; material: polyester, nylon;
    style: compact, classic, floral, plaid; audience: women, men, kids;
    feature: programmable, foldable, lightweight

    type: mobile phone, handset; said: smartphone, cell, cellular;
    in: electronics, phones; price: 380; with: handset case, charging cable;
    size: 64 GB, 128 GB, 256 GB;
    color: black, silver, blue, white, lavender; material: glass, aluminum, plastic;
    style: slim, compact, rugged; audience: seniors, professionals, kids;
    feature: fast-charging, waterproof, shockproof

    type: handset case, bumper case; said: cellphone shell, cellphone skin;
    in: electronics, phone cases; price: 18;
    color: black, navy, blush, sage, white, red;
    material: silicone, leather, plastic; style: slim, floral, rugged, playful;
    audience: women, men, kids; feature: shockproof, waterproof, washable

    type: charging cable, USB lead; said: charger cord, power wire;
    in: electronics, cables; price: 12; with: portable speaker;
    size: 1 m, 2 m, 3 m;
    color: white, black, silver, red; material: nylon, silicone, plastic;
    style: compact, rugged, slim; feature: fast-charging, shockproof, stretch

    type: in-ear headphones, ear monitors; said: earbuds, airpods, buds;
    in: electronics, headphones; price: 60; with: charging cable;
    color: white, black, navy, blush, silver; material: silicone, plastic, aluminum;
    style: compact, modern, slim; audience: kids, professionals, women;
    feature: wireless, noise-cancelling, waterproof

    type: over-ear headphones, studio headphones; said: headset, cans;
    in: electronics, headphones; price: 110; with: charging cable;
    color: black, white, charcoal, blue, tan; material: leather, foam, plastic;
    style: modern, vintage, professional; audience: professionals, kids, beginners;
    feature: noise-cancelling, wireless, foldable

    type: portable speaker, travel speaker; said: boombox, loudspeaker, music box;
    in: electronics, audio; price: 65;
    color: black, teal, red, charcoal, green; material: plastic, aluminum, bamboo;
    style: compact, rugged, vintage; audience: kids, professionals;
    feature: waterproof, wireless, rechargeable

    type: notebook computer, ultrabook; said: laptop, macbook;
    in: electronics, computers; price: 780; with: computer sleeve;
    size: 13 in, 14 in, 15 in;
    color: silver, charcoal, black, white; material: aluminum, plastic;
    style: slim, modern, rugged; audience: professionals, kids, beginners;
    feature: lightweight, fast-charging, lockable

    type: computer sleeve, slipcase; said: laptop bag, pc pouch;
    in: electronics, computers accessories; price: 26; size: 13 in, 14 in, 15 in;
    color: charcoal, black, navy, blush, sage; material: polyester, leather, canvas;
    style: slim, classic, floral; audience: women, professionals, kids;
    feature: padded, waterproof, shockproof

    type: drip brewer, filter brewer; said: coffee maker, coffee machine;
    in: kitchen, coffee; price: 75; with: brew filters, travel mug;
    size: 4 cup, 8 cup, 12 cup;
    color: black, silver, red, white; material: stainless steel, plastic, glass;
    style: compact, modern, vintage, professional;
    feature: programmable, insulated, rechargeable

    type: press pot, plunger pot; said: french press, cafetiere;
    in: kitchen, coffee; price: 34; with: travel mug; size: 3 cup, 6 cup, 8 cup;
    color: black, silver, teal, white; material: glass, stainless steel, ceramic;
    style: classic, modern, compact; audience: beginners, professionals;
    feature: insulated, dishwasher-safe

    type: brew filters, basket filters; said: coffee papers, percolator liners;
    in: kitchen, coffee supplies; price: 9; with: drip brewer;
    size: pack of 100, pack of 200, pack of 400;
    color: white, brown, silver; material: bamboo, cotton, stainless steel;
    style: classic, professional, compact;
    feature: organic, washable, dishwasher-safe

    type: travel mug, vacuum tumbler; said: coffee cup, thermos;
    in: kitchen, drinkware; price: 23; with: drip brewer; size: 12 oz, 16 oz, 20 oz;
    color: black, white, teal, sage, navy, red;
    material: stainless steel, ceramic, bamboo; style: slim, classic, floral, rugged;
    audience: women, men, kids; feature: leakproof, insulated, dishwasher-safe

    type: frying pan, saute pan; said: skillet, fryer;
    in: kitchen, cookware; price: 42; with: pan protectors, kitchen knife;
    size: 8 in, 10 in, 12 in;
    color: black, silver, red, blue;
    material: cast iron, stainless steel, aluminum, ceramic;
    style: professional, classic, compact; audience: beginners, professionals;
    feature: non-stick, dishwasher-safe, lightweight

    type: stock pot, casserole; said: soup cauldron, dutch oven;
    in: kitchen, cookware; price: 58; with: pan protectors; size: 4 qt, 6 qt, 8 qt;
    color: red, black, silver, teal, ivory;
    material: cast iron, stainless steel, ceramic;
    style: classic, rustic, professional; audience: beginners, professionals;
    feature: non-stick, dishwasher-safe, insulated

    type: pan protectors, cookware separators; said: skillet dividers, pot savers;
    in: kitchen, cookware supplies; price: 13; size: set of 3, set of 5;
    color: charcoal, red, blue, green; material: polyester, cotton, bamboo;
    style: classic, floral, striped; feature: washable, non-slip, foldable

    type: kitchen knife, cook's knife; said: chopping blade, cleaver;
    in: kitchen, knives; price: 48; with: cutting board; size: 6 in, 8 in, 10 in;
    color: silver, black, brown; material: stainless steel, ceramic, walnut;
    style: professional, classic, rustic; audience: beginners, professionals;
    feature: dishwasher-safe, lightweight, non-slip

    type: cutting board, carving board; said: chopping block, chop tray;
    in: kitchen, boards; price: 27; with: kitchen knife;
    size: small board, medium board, large board;
    color: tan, brown, black, white; material: bamboo, oak, walnut, plastic;
    style: classic, rustic, compact, modern;
    feature: non-slip, reversible, dishwasher-safe

    type: fabric sofa, settee; said: couch, loveseat;
    in: home, seating; price: 620; with: throw pillow, area rug;
    size: two-seater, three-seater;
    color: charcoal, tan, navy, sage, teal;
    material: velvet, linen, leather, polyester;
    style: modern, classic, compact, bohemian; audience: kids, seniors;
    feature: washable, reversible, foldable

    type: lounge armchair, accent chair; said: recliner, easychair;
    in: home, seating; price: 230; with: throw pillow, floor lamp;
    color: tan, charcoal, teal, mustard, blush;
    material: velvet, leather, rattan, linen;
    style: modern, vintage, classic, bohemian; audience: seniors, kids;
    feature: orthopedic, padded, adjustable

    type: throw pillow, scatter pillow; said: cushion, couch bolster;
    in: home, pillows; price: 21; size: 16 in, 18 in, 20 in;
    color: mustard, teal, ivory, blush, charcoal, red;
    material: velvet, linen, cotton, wool; style: bohemian, floral, striped, modern;
    audience: kids, seniors; feature: washable, reversible, padded

    type: area rug, floor rug; said: carpet, mat;
    in: home, rugs; price: 130; with: fabric sofa; size: 4x6 ft, 5x8 ft, 8x10 ft;
    color: ivory, navy, charcoal, burgundy, sage;
    material: wool, jute, cotton, polyester;
    style: bohemian, vintage, modern, striped; audience: kids, seniors;
    feature: non-slip, washable, reversible

    type: window curtains, curtain panels; said: drapes, window hangings;
    in: home, curtains; price: 40; with: area rug; size: 63 in, 84 in, 95 in;
    color: ivory, charcoal, navy, sage, blush;
    material: linen, velvet, polyester, cotton;
    style: modern, floral, striped, bohemian; audience: kids, infants;
    feature: blackout, insulated, washable

    type: floor lamp, arc lamp; said: standing light, torchiere;
    in: home, lighting; price: 85; with: filament bulbs;
    color: black, silver, ivory, brown;
    material: stainless steel, oak, rattan, glass;
    style: modern, rustic, classic, vintage; audience: kids, seniors;
    feature: dimmable, adjustable, programmable

    type: desk lamp, task lamp; said: table light, reading lite;
    in: home, lighting; price: 38; with: filament bulbs;
    color: black, white, silver, sage; material: aluminum, plastic, oak;
    style: modern, vintage, compact; audience: kids, professionals, seniors;
    feature: dimmable, adjustable, rechargeable

    type: filament bulbs, LED bulbs; said: lightbulb, led globes;
    in: home, lighting supplies; price: 16; with: desk lamp;
    size: pack of 2, pack of 4, pack of 6;
    color: white, mustard, blue; material: glass, plastic;
    style: vintage, classic, compact; feature: dimmable, programmable, shockproof

    type: duvet set, quilt set; said: comforter, doona, bedspread;
    in: home, bedding; price: 72; with: sleeping pillow; size: twin, queen, king;
    color: white, sage, navy, blush, charcoal; material: cotton, linen, polyester;
    style: floral, striped, plaid, modern; audience: kids, seniors;
    feature: washable, cooling, reversible

    type: sleeping pillow, bed pillow; said: headrest, neck cushion;
    in: home, pillows; price: 36; with: duvet set; size: standard, queen, king;
    color: white, ivory, blue; material: foam, down, cotton, bamboo;
    style: classic, slim, oversized; audience: seniors, kids, infants;
    feature: cooling, orthopedic, washable

    type: camping tent, dome tent; said: canopy, bivouac, wigwam;
    in: outdoor, tents; price: 150; with: sleeping bag;
    size: 2 person, 4 person, 6 person;
    color: green, tan, navy, red; material: nylon, polyester, canvas;
    style: compact, rugged, classic; audience: beginners, professionals, kids;
    feature: waterproof, lightweight, breathable

    type: sleeping bag, mummy bag; said: bedroll, camp quilt;
    in: outdoor, sleeping bags; price: 70; with: camping tent;
    color: navy, green, charcoal, red; material: down, nylon, fleece, polyester;
    style: compact, rugged, slim; audience: kids, women, men;
    feature: insulated, lightweight, waterproof

    type: garden hose, soaker hose; said: water pipe, yard tube;
    in: outdoor, watering; price: 33; with: plant pot; size: 25 ft, 50 ft, 100 ft;
    color: green, black, blue, red; material: plastic, nylon, silicone;
    style: compact, rugged, professional; feature: stretch, leakproof, lightweight

    type: plant pot, planter; said: flowerpot, jardiniere;
    in: outdoor, pots; price: 24; size: 4 in, 6 in, 10 in;
    color: white, tan, charcoal, teal, mustard;
    material: ceramic, plastic, bamboo, jute;
    style: modern, rustic, bohemian, playful; audience: kids, beginners;
    feature: lightweight, waterproof, programmable

    type: charcoal grill, kettle grill; said: bbq, barbecue, smoker;
    in: outdoor, patio; price: 145; with: grill tongs;
    color: black, red, silver, green; material: stainless steel, cast iron, aluminum;
    style: compact, professional, classic; audience: beginners, professionals;
    feature: foldable, non-stick, lightweight

    type: grill tongs, grilling spatula; said: bbq tools, turner utensil;
    in: outdoor, patio supplies; price: 20;
    color: silver, black, brown, red; material: stainless steel, walnut, silicone;
    style: professional, classic, rugged; audience: beginners, professionals;
    feature: dishwasher-safe, non-slip, lockable

    type: yoga pad, exercise pad; said: pilates mat, gym mat;
    in: sports, mats; price: 32; with: training dumbbells, sports bottle;
    size: 4 mm, 6 mm, 8 mm;
    color: lavender, teal, black, sage, blush; material: foam, silicone, jute;
    style: classic, slim, floral; audience: women, beginners, professionals;
    feature: non-slip, foldable, washable

    type: training dumbbells, free weights; said: barbells, lifting hand weight;
    in: sports, weights; price: 44; with: yoga pad; size: 2 kg, 5 kg, 10 kg;
    color: black, blush, teal, silver;
    material: cast iron, silicone, stainless steel;
    style: compact, professional, classic; audience: women, men, beginners;
    feature: adjustable, non-slip, padded

    type: sports bottle, hydration bottle; said: water flask, canteen, drinking jug;
    in: sports, fitness supplies; price: 21; with: trail backpack;
    size: 18 oz, 24 oz, 32 oz;
    color: black, teal, white, lavender, red;
    material: stainless steel, plastic, glass; style: slim, playful, rugged;
    audience: kids, women, men; feature: leakproof, insulated, dishwasher-safe

    type: trail backpack, daypack; said: rucksack, bookbag, knapsack;
    in: sports, bags; price: 62; with: computer sleeve; size: 15 L, 20 L, 30 L;
    color: black, green, navy, charcoal, mustard;
    material: nylon, canvas, leather, polyester; style: rugged, vintage, compact;
    audience: men, women, kids; feature: waterproof, lightweight, lockable

    type: gym duffel, weekender; said: holdall, sports sack;
    in: sports, bags; price: 55; with: sports bottle; size: 30 L, 40 L, 60 L;
    color: black, charcoal, navy, tan, burgundy; material: canvas, nylon, leather;
    style: classic, vintage, rugged; audience: women, men;
    feature: waterproof, foldable, lockable

    type: city bicycle, commuter cycle; said: bike, pushbike;
    in: sports, cycling; price: 420; with: cycling helmet; size: 24 in, 26 in, 28 in;
    color: black, teal, red, ivory, green; material: aluminum, stainless steel;
    style: vintage, modern, rugged; audience: women, men, kids;
    feature: foldable, lightweight, adjustable

    type: cycling helmet, crash helmet; said: bike hat, headgear;
    in: sports, cycling supplies; price: 48;
    color: black, white, red, teal, mustard; material: plastic, foam, aluminum;
    style: modern, vintage, playful; audience: kids, women, men;
    feature: breathable, adjustable, lightweight

    type: infant stroller, folding stroller; said: pram, pushchair, buggy;
    in: family, nursery; price: 240; with: nursing bottle, teething toy;
    color: black, charcoal, navy, tan, sage; material: aluminum, polyester, leather;
    style: compact, modern, rugged; audience: infants, kids;
    feature: foldable, lightweight, padded

    type: nursing bottle, feeding bottle; said: sippy, milk bottles;
    in: family, nursery supplies; price: 15; size: 5 oz, 8 oz, 9 oz;
    color: white, blue, blush, green; material: glass, silicone, plastic;
    style: slim, classic, playful; audience: infants, kids;
    feature: leakproof, dishwasher-safe, insulated

    type: teething toy, teether; said: chew ring, rattle;
    in: family, teethers; price: 12;
    color: mustard, sage, blue, blush; material: silicone, cotton, oak;
    style: playful, bohemian, classic; audience: infants;
    feature: organic, washable, cooling

    type: stuffed toy, soft toy; said: plushie, teddy;
    in: family, plush; price: 23; with: infant stroller;
    color: brown, ivory, blush, charcoal, mustard;
    material: cotton, fleece, wool, linen; style: playful, vintage, oversized;
    audience: kids, infants; feature: washable, organic, padded

    type: dog bed, pet mattress; said: puppy basket, doggy couch;
    in: pets, dogs; price: 52; with: dog leash;
    color: charcoal, tan, navy, brown, sage; material: foam, fleece, cotton, canvas;
    style: modern, rustic, oversized; audience: large breeds, small breeds;
    feature: washable, orthopedic, waterproof

    type: dog leash, dog harness; said: puppy lead, walking string;
    in: pets, dogs supplies; price: 22;
    color: black, red, teal, brown, mustard; material: nylon, leather, cotton;
    style: rugged, playful, classic; audience: large breeds, small breeds;
    feature: adjustable, padded, waterproof

    type: face moisturizer, day lotion; said: facial cream, skin creme;
    in: beauty, skin; price: 24; with: body soap; size: 30 ml, 50 ml, 100 ml;
    style: classic, professional, compact; audience: women, men, infants, seniors;
    feature: fragrance-free, organic, cooling

    type: body soap, cleansing bar; said: shower wash, handwash, sudsy block;
    in: beauty, bath; price: 9; color: ivory, sage, lavender, blush;
    style: classic, floral, vintage; audience: women, men, infants, kids;
    feature: organic, fragrance-free, cooling; size: pack of 2, pack of 4

    type: hair dryer, salon dryer; said: blowdryer, blower;
    in: beauty, hair; price: 58; with: styling brush;
    color: black, blush, white, lavender; material: plastic, ceramic, aluminum;
    style: compact, professional, vintage; audience: women, men, kids;
    feature: foldable, lightweight, adjustable

    type: styling brush, paddle brush; said: hairbrush, detangler comb;
    in: beauty, hair supplies; price: 17;
    color: black, blush, brown, teal; material: bamboo, plastic, oak, silicone;
    style: classic, compact, professional; audience: women, men, kids, infants;
    feature: lightweight, non-slip, washable
""")


def _complements() -> dict[str, frozenset[str]]:
    forth = {(a, b) for a, kind in TYPES.items() for b in kind.complements}
    both = forth | {(b, a) for a, b in forth}
    return {a: frozenset(b for c, b in both if c == a) for a in TYPES}


COMPLEMENTS: dict[str, frozenset[str]] = _complements()
"""Type -> the types used together with it."""
