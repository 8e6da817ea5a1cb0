"""Ordinary words for the home-commands templates: rooms, devices, things to say."""

from __future__ import annotations

NAMES = {
    "button": ("doorbell", "garage opener", "coffee machine", "reset switch"),
    "climate": ("thermostat", "heat pump", "air conditioner", "radiator", "underfloor heating"),
    "cover": ("roller blind", "velvet curtain", "skylight shade", "side gate", "patio awning"),
    "binary_sensor": ("mail slot", "pantry hatch", "cat flap", "motion sensor", "parking space"),
    "fan": ("ceiling fan", "tower fan", "extractor", "ventilator"),
    "input_boolean": ("guest mode", "vacation mode"),
    "lawn_mower": ("robot mower", "grass cutter", "shaun", "front lawn"),
    "light": ("chandelier", "bedside", "reading", "desk", "mirror", "piano", "aquarium", "fairy"),
    "lock": ("front entrance", "back entrance", "cellar hatch", "gun safe", "shed lock"),
    "media_player": ("television", "record player", "soundbar", "radio", "projector"),
    "person": ("anna", "miguel", "grandma", "yusuf", "charlotte"),
    "scene": ("movie night", "dinner party", "sunrise", "romantic", "focus time"),
    "script": ("good night routine", "morning routine", "leaving home", "party time"),
    "sensor": ("humidity meter", "rain gauge", "power meter", "air quality"),
    "switch": ("kettle", "heater plug", "fountain", "christmas tree", "humidifier"),
    "todo": ("groceries", "packing", "weekend", "errands", "birthday"),
    "vacuum": ("roomba", "dusty", "robot vacuum", "hoover"),
    "valve": ("sprinkler", "water main", "garden tap", "drip line"),
    "weather": ("oslo", "lisbon", "new york", "nairobi", "kyoto"),
}
"""Names of devices and the like by Home Assistant's domain; a name belongs to one domain."""

WORDS = {
    "area": (
        *("kitchen", "bedroom", "living room", "bathroom", "office", "hallway", "dining room"),
        *("guest room", "nursery", "laundry room", "studio", "library", "workshop", "sunroom"),
    ),
    "floor": ("ground", "first", "second", "top", "basement", "upper level", "attic"),
    "message": ("dinner is ready", "the bus leaves in ten minutes", "time for bed"),
    "search_query": (
        *("bohemian rhapsody", "the beatles", "miles davis", "abbey road", "smooth jazz"),
        *("the moonlight sonata", "nina simone", "rainy day classics", "planet earth"),
    ),
    "shopping_list_item": (
        *("milk", "oat milk", "a dozen eggs", "sourdough bread", "bananas", "dish soap"),
        *("paper towels", "olive oil", "cherry tomatoes", "cat food", "coffee beans", "rice"),
    ),
    "timer_command": (
        *("turn off the oven", "open the curtains", "lock the front door", "water the plants"),
        *("switch on the lamp", "pause the music", "close the window", "start the dishwasher"),
    ),
    "timer_name": (
        *("pizza", "pasta", "laundry", "homework", "tea", "egg", "bread", "nap", "workout"),
        *("soup", "yoga", "cookies"),
    ),
    "todo_list_item": (
        *("call the plumber", "passport", "toothbrush", "pay the rent", "water the ferns"),
        *("batteries", "book the dentist", "sunscreen", "wrap the present", "candles"),
    ),
    "zone": ("home", "school", "work", "the gym", "the office downtown"),
}
"""Values of the lists that a household fills in itself, and of free text."""

RANGES = {
    "temperature": (15, 27),
    "timer_hours": (1, 12),
    "timer_minutes": (1, 59),
    "timer_seconds": (5, 59),
}
"""Narrower than the templates allow: numbers that people say."""
