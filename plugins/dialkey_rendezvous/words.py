"""512 words that can be told apart over a bad line, and how alike two words sound.

The words are our own choice, of things and names that people know. A word is in the list if

- it has four to eight letters a to z, and no other word begins with the same four letters, so that Tab
  completes it after four letters at most;
- no other word has the same `sound`, in which consonants that a bad line confuses are one (b, d, p, t
  and v; c, g, k and q; f, s and z; m and n), all vowels are one, and repetitions are dropped;
- it differs from every other word in three letters at least.

A test keeps these rules. The list and its order are part of the wire protocol: the words that two people
compare are chosen by number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["WORDS", "sound"]

_LIST: Final = """
abacus acorn acrobat airport almanac almond alpaca alpine amber anchor antelope apple apricot
aquarium arcade armchair arrow aspen athlete atlas attic autumn avocado backpack badger bamboo
bandage banjo barley basket battery bazaar beacon beaver bicycle billiard birthday bishop
blossom bluebird bobcat bonfire botany bottle boulder bouquet bowling bracelet brandy bravo
brick bridge bronze broom brother brush buffalo bumper bungalow button cabbage cabin cactus
camel canary candle canyon caravan cardinal cargo carpet catalog cedar celery cello cement
century ceramic chalk charcoal cheese cherry chestnut chimney chisel cinnamon circus clarinet
clay climate cloud clover cobra coconut coffee compass concert condor cookie copper corridor
cosmos cousin coyote crater cricket crown crystal cucumber cupcake curtain cyclone cymbal
daffodil daisy dance dentist desert diamond diary dinosaur diploma doctor dolphin domino
doorbell dragon drizzle drummer duchess duet eagle eardrum earth eclipse elbow elephant elevator
emerald energy engine equator espresso estuary evening fabric factory falcon family feather fern
festival fiddle film finger flamingo flannel floor flute football forest fossil fountain
fragment freckle friday frog fudge furnace galaxy gallop gargoyle garlic gazelle gecko geranium
geyser ghost giant giraffe glacier goblet goggles golden gondola gorilla gospel granite grape
grocer gymnast habitat halibut hallway hamster harmony harp harvest hazelnut hedgehog helium
helmet hickory hippo hockey holiday holly horizon hornet hotel hound hurdle hydrant iguana
illusion inch indigo infant inkwell insect island isotope ivory jackal jade jaguar jasmine jeep
jersey jigsaw journey jungle juniper kangaroo kayak kernel keyboard kidney kimono kingdom
kitchen kiwi knight koala lagoon lantern lasagna laurel lavender lawyer leaf legend lemon
leopard lettuce level library lilac liquid lizard llama lobster logic lotus lullaby lunar
macaroni magenta magnet magpie mahogany mailbox mammoth manatee mandolin manor marathon marble
marigold mascot mattress maximum meadow melody merchant merlin mermaid metal meteor midnight
mimosa minnow mirror mittens mobile mongoose monsoon moose morning mosaic moth muffin mushroom
mustard nacho napkin napoleon narwhal navy nectar needle nephew nest neutron newborn nickel
ninja nomad northern nougat nugget nurse nutmeg nylon oasis oatmeal ocean octagon octopus office
olympic onion onyx orange orbit orchard oregano ostrich otter outfit oxygen package paint palace
palette pancake panther papaya paprika passport pasture patrol pavement peacock peanut pearl
pelican pencil penguin peony perfume photo pickle picnic pier pigeon pigment pillow pinwheel
pirate plank plaster platinum plum polar popcorn porch portrait postcard potato powder prairie
pretzel prism profile pudding pumpkin puppet puzzle pyramid python quail quartz queen quiver
rabbit radish rainbow raisin raven recipe record referee reindeer replica rescue rhubarb rhythm
ring ritual roast rosemary ruby safari saffron sailor salad sandwich sapphire sardine satchel
saturn sausage scarf scholar scissors scooter scorpion screw seagull seaweed seesaw seventy
shampoo shepherd sheriff siesta signal silver sketch skunk slalom sledge slipper smoke snorkel
snowman soccer socks sofa sonata soprano spinach spiral sponge spruce squash squirrel stadium
stamp starfish statue stereo stirrup storm street subway suitcase sultan sunset swallow sweater
syrup tadpole tapestry temple tennis thimble thunder tobacco tornado tortoise tractor trapeze
treasure trumpet tulip tunnel turkey twilight umbrella unicorn upstairs vanilla vessel viking
village vinegar violin volcano vulture waffle walnut wardrobe whisper widow wolf wombat woodwind
zeppelin zigzag zucchini
"""

WORDS: Final[tuple[str, ...]] = tuple(_LIST.split())

_SPELLINGS: Final = (
    *(("tch", "J"), ("sch", "SK"), ("ph", "S"), ("ch", "J"), ("sh", "J"), ("th", "S")),
    *(("gh", "K"), ("ck", "K"), ("qu", "KW"), ("kn", "N"), ("wr", "R"), ("wh", "W"), ("x", "KS")),
    *((soft + vowel, sound + vowel) for soft, sound in ("cS", "gJ") for vowel in "eiy"),
)
"""How letters together are spoken, in the order in which they are looked for."""

_CONFUSED: Final = {
    **dict.fromkeys("bdptv", "T"),
    **dict.fromkeys("cgkq", "K"),
    **dict.fromkeys("fsz", "S"),
    **dict.fromkeys("mn", "N"),
    **dict.fromkeys("aeiouy", "A"),
    "j": "J",
    "l": "L",
    "r": "R",
    "w": "W",
    "h": "",
}


def sound(word: str) -> str:
    """Return what of a word in lower case gets through a bad line."""
    for letters, spoken in _SPELLINGS:
        word = word.replace(letters, spoken)
    return "".join(_without_repetitions(_CONFUSED.get(letter, letter) for letter in word))


def _without_repetitions(letters: Iterator[str]) -> Iterator[str]:
    last = ""
    for letter in letters:
        if letter and letter != last:
            yield letter
            last = letter
