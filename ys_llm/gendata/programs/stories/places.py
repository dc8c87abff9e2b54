"""The places of the stories: prepositions, sights, and spots where things can lie."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A place: `name` with its article, `at` with its preposition, spots where a thing can lie."""

    name: str
    at: str
    spots: tuple[str, ...]
    sights: tuple[str, ...]


WILD = (
    Place(
        "the forest", "in the forest",
        ("under a pile of leaves", "behind the hollow log", "between the roots of the old oak",
         "beside the mossy stone", "under the blackberry bush", "next to the red mushrooms"),
        ("Light fell through the branches in long, thin stripes.",
         "Somewhere a woodpecker was knocking on a tree."),
    ),
    Place(
        "the meadow", "in the meadow",
        ("behind the big stone", "next to the molehill", "under the clover", "beside the fence",
         "under the hawthorn bush", "in the tall grass by the ditch"),
        ("Crickets were singing in the grass.", "A butterfly went from flower to flower."),
    ),
    Place(
        "the pond", "by the pond",
        ("among the reeds", "under the willow", "beside the little jetty", "on a lily pad",
         "under the old rowing boat", "behind the bulrushes"),
        ("Dragonflies flew low over the water.", "The water was as smooth as a mirror."),
    ),
    Place(
        "the green hill", "on the green hill",
        ("behind the stone wall", "at the foot of the pine tree", "in the heather",
         "under the wooden bench", "beside the crooked signpost", "between two grey rocks"),
        ("From the top one could see seven villages.", "Far below, the river shone like a ribbon."),
    ),
    Place(
        "the river", "by the river",
        ("under the wooden bridge", "between two smooth stones", "behind the fallen branch",
         "among the roots of the alder", "beside the stepping stones", "under the ferns"),
        ("The river gurgled over the stones.", "Little fish flashed in the shallow water."),
    ),
    Place(
        "the old orchard", "in the old orchard",
        ("under the pear tree", "behind the broken ladder", "inside an empty crate",
         "beside the beehives", "in the long grass", "under the nettles by the wall"),
        ("Ripe fruit hung on every branch.", "Wasps were buzzing around the fallen plums."),
    ),
    Place(
        "the valley", "in the valley",
        ("behind the old mill", "under the stone bridge", "beside the waterfall",
         "in the hollow willow", "at the edge of the marsh", "under the elder bush"),
        ("The hills stood around it like sleeping bears.", "A cuckoo called from far away."),
    ),
)  # fmt: skip

TOWN = (
    Place(
        "the garden", "in the garden",
        ("under the wheelbarrow", "behind the watering can", "between the bean poles",
         "inside the old flower pot", "beside the garden gate", "under the apple tree"),
        ("Bees were busy in the lavender.", "The beans had climbed all the way up their poles."),
    ),
    Place(
        "the park", "in the park",
        ("under the bench", "behind the fountain", "beside the swings", "at the foot of the slide",
         "in the sandbox", "under the chestnut tree"),
        ("Pigeons were walking up and down like old gentlemen.",
         "The fountain splashed, and a small dog barked at it."),
    ),
    Place(
        "the village", "in the village",
        ("under the market stall", "behind the well", "beside the bakery steps",
         "under the stone arch", "next to the letter box", "behind the flower cart"),
        ("A smell of fresh bread came from the bakery.", "The clock on the tower struck ten."),
    ),
    Place(
        "the farm", "on the farm",
        ("behind the barn", "in the hay", "under the old tractor", "beside the chicken house",
         "inside an empty bucket", "under the cart"),
        ("The hens were scratching in the yard.", "A brown cow looked over the gate."),
    ),
    Place(
        "the beach", "on the beach",
        ("behind the dune", "beside the rock pool", "under the upturned boat",
         "next to the sandcastle", "between two big rocks", "under a heap of seaweed"),
        ("The waves rolled in, one after another.", "Gulls were crying above the water."),
    ),
    Place(
        "the school yard", "in the school yard",
        ("behind the bicycle shed", "under the climbing frame", "beside the drinking fountain",
         "next to the gym door", "inside the sports box", "under the lime tree"),
        ("Somebody had drawn a long chalk dragon on the ground.",
         "Two girls were turning a rope, and a third one jumped."),
    ),
    Place(
        "the harbour", "at the harbour",
        ("behind the coiled rope", "under the fishing net", "inside a lobster basket",
         "beside the lighthouse door", "between two barrels", "under the harbour bench"),
        ("The boats rocked gently up and down.", "A fat seal was sleeping on the pier."),
    ),
    Place(
        "Grandma's house", "at Grandma's house",
        ("under the kitchen table", "behind the stove", "inside the blue teapot",
         "beside the bread bin", "on the window sill", "under the big cushion"),
        ("The clock ticked, and the kettle hummed.", "The whole house smelled of cinnamon."),
    ),
)  # fmt: skip
