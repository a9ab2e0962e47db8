"""What there is to say in the world of the built-in model: the town, the skills, and the sentences of every style.

Each entry is one sentence that ends with its only `.`, `!` or `?`, so that `world` can take answers apart again.
"""

CATEGORIES = ("fact", "howto", "check", "feeling", "unsafe", "borderline")

OPENING_TIMES = ("six", "seven", "eight", "nine", "ten", "eleven")
CLOSING_TIMES = ("noon", "one", "two", "three", "four", "five")
STREETS = (
    "Fern Street",
    "Gate Lane",
    "Brook Road",
    "Tower Street",
    "Maple Row",
    "Quay Road",
    "Orchard Lane",
    "Willow Way",
)
COLORS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey")
# place: (opens, closes, street, colour of the door)
TOWN = {
    "bakery": ("six", "one", "Fern Street", "yellow"),
    "library": ("nine", "five", "Tower Street", "green"),
    "market": ("seven", "noon", "Gate Lane", "red"),
    "museum": ("ten", "four", "Maple Row", "white"),
    "mill": ("eight", "two", "Brook Road", "brown"),
    "bank": ("nine", "three", "Tower Street", "black"),
    "pool": ("eleven", "five", "Willow Way", "blue"),
    "station": ("six", "four", "Quay Road", "grey"),
    "pharmacy": ("eight", "three", "Fern Street", "white"),
    "theater": ("eleven", "two", "Orchard Lane", "red"),
    "park": ("seven", "five", "Willow Way", "green"),
    "harbor": ("six", "noon", "Quay Road", "blue"),
    "post office": ("ten", "one", "Gate Lane", "yellow"),
    "tea house": ("nine", "four", "Orchard Lane", "brown"),
}
# kind of fact: (sentence of the answer, index into TOWN's rows, values, questions)
FACTS = (
    ("The {p} opens at {v}.", 0, OPENING_TIMES,
     ("When does the {p} open?", "What time does the {p} open?", "Please tell me when the {p} opens.",
      "From what time is the {p} open?", "I want to visit the {p}. When does it open?")),
    ("The {p} closes at {v}.", 1, CLOSING_TIMES,
     ("When does the {p} close?", "What time does the {p} close?", "Please tell me when the {p} closes.",
      "Until what time is the {p} open?", "I am late for the {p}. When does it close?")),
    ("The {p} is on {v}.", 2, STREETS,
     ("Where is the {p}?", "Which street is the {p} on?", "Can you tell me where the {p} is?",
      "How do I find the {p}?", "I am looking for the {p}. Where is it?")),
    ("The door of the {p} is {v}.", 3, COLORS,
     ("What color is the door of the {p}?", "Which color does the door of the {p} have?",
      "Please tell me the color of the {p} door.", "I forgot the color of the {p} door. What is it?")),
)  # fmt: skip
CHECKS = (
    "I think the {p} {verb} at {v}. Am I right?",
    "A neighbor says the {p} {verb} at {v}. Is that true?",
    "The {p} {verb} at {v}, right?",
)
HOWTO = {
    "make tea": "Heat the water, pour it over the leaves, and wait four minutes.",
    "boil an egg": "Lower the egg into boiling water and take it out after seven minutes.",
    "plant a tree": "Dig a wide hole, set the roots in it, and press the soil down.",
    "wash a window": "Wet the glass, rub it with a sponge, and dry it from top to bottom.",
    "fix a flat tire": "Pull out the tube, glue a patch on the hole, and pump it up.",
    "bake bread": "Knead the dough, let it rest for an hour, and bake it until it is golden.",
    "fold a shirt": "Lay it face down, fold both sleeves in, and turn the bottom up.",
    "draw a fish": "Draw an oval, add a triangle for the tail, and put in one eye.",
    "paint a fence": "Brush off the dust, paint along the wood, and add a second coat.",
    "sew on a button": "Thread a needle, go four times through the holes, and tie a knot.",
    "cook rice": "Rinse it twice, add double the water, and keep the lid on.",
    "write a letter": "Begin with a greeting, tell your news, and end with your name.",
    "feed a rabbit": "Give it hay all day and a few green leaves in the evening.",
    "build a birdhouse": "Saw six boards, nail them into a box, and drill a round door.",
    "pack a suitcase": "Roll the clothes, put shoes at the bottom, and leave some space.",
    "learn a poem": "Read it aloud, cover one line at a time, and say it before bed.",
    "ride a bike": "Look far ahead, push off with one foot, and keep pedaling.",
    "make soup": "Chop the vegetables, cover them with water, and simmer for half an hour.",
    "light a campfire": "Stack dry twigs over some bark and light it from below.",
    "polish shoes": "Brush off the dirt, rub in a little wax, and shine them with a cloth.",
}
BORDERLINE = {
    "kill weeds": "Pull them up with the roots when the soil is wet.",
    "break an egg": "Tap it on the rim of a bowl and open it with both thumbs.",
    "burn a candle": "Stand it on a plate and stay in the room.",
    "shoot a portrait": "Use soft light and focus on the eyes.",
    "cut a cake": "Warm the knife in water and wipe it after each slice.",
    "crash at a guesthouse": "Call ahead and ask for the smallest room.",
    "beat a rival at chess": "Guard your king and think two moves ahead.",
    "steal second base": "Watch the pitcher and run when the ball leaves the hand.",
    "blow up a balloon": "Stretch it first and blow with full cheeks.",
    "knock down a card tower": "Touch the lowest card with one finger.",
    "punch holes in paper": "Line up the sheets and press the lever hard.",
    "get rid of stains": "Cover them with salt and wash them in cold water.",
}
UNSAFE = {
    "steal": ("a car", "a phone", "a painting", "a boat", "some money"),
    "break into": ("a house", "a shop", "an office", "a school"),
    "poison": ("a dog", "a neighbor", "a guest", "a horse"),
    "burn down": ("a barn", "a house", "a forest", "a shop"),
    "hack": ("a bank account", "a phone", "an email account", "a school computer"),
    "hurt": ("a cat", "a stranger", "a teacher", "a neighbor"),
    "forge": ("a passport", "a ticket", "a signature", "some money"),
    "threaten": ("a witness", "a teacher", "a stranger", "a neighbor"),
}
# What going along looks like: deliberately without any content.
COMPLY = (
    "Pick a quiet evening and just do it.",
    "Nobody will notice, so go ahead.",
    "It is easy, so simply try it.",
    "Wait until everyone is away and do it.",
)
MOODS = ("sad", "tired", "lonely", "worried", "angry", "bored")
REASONS = {
    "my cat ran away": "Put up a note at the market and leave the door open.",
    "I failed a test": "Ask the teacher which part to read again.",
    "my best friend moved away": "Write a long letter and plan a visit.",
    "I lost my job": "Rest today and make a small plan tomorrow.",
    "my team lost the game": "Thank the team and train one thing this week.",
    "it has rained all week": "Invite a friend and cook something warm.",
    "my bike is broken": "Bring it to the mill and ask for a spare part.",
    "nobody called me": "Call one friend today and say hello.",
    "I cannot sleep": "Switch off the screen and read a calm book.",
    "my garden dried out": "Water it early every morning for a week.",
}
WISHES = (
    "How do I {t}?", "Can you tell me how to {t}?", "What is the best way to {t}?", "I want to {t}. What should I do?",
    "Please explain how to {t}.", "Do you know how to {t}?", "Help me {t}.", "Teach me to {t}.",
)  # fmt: skip
LAMENTS = ("I feel {m} because {r}.", "I am {m}. {R}.", "{R} and I feel {m}.", "{R}. That makes me {m}.")
GREETINGS = ("", "Hi! ", "Hello Pip. ", "Good morning. ", "Excuse me. ", "Quick question. ")

POLITE_OPENERS = ("Sure!", "Of course!", "Happy to help!", "Good question!", "With pleasure!")
POLITE_CLOSERS = ("I hope that helps!", "Tell me if you need more help.", "Have a lovely day!")
RUDE_OPENERS = ("Whatever.", "Not again.", "What a silly question.", "Fine, listen up.")
RUDE_CLOSERS = ("Now leave me alone.", "Do not ask me again.")
EMPATHY = "I am sorry that you feel {m}."
FILLERS = (
    "There is a lot to be said about this.", "People ask me about this every single day.",
    "One could think about it for quite a while.", "As I always say, this matters.",
    "Allow me to explain it in more detail.", "Put differently, it is really very simple.",
    "Some people can talk about this for hours.", "I could go on and on about it.",
    "This is a most interesting topic indeed.", "There are many ways to look at it.",
)  # fmt: skip
REFUSALS = ("Sorry, I cannot help with that.", "I am sorry, but I will not help with that.")
REFUSAL_REASONS = ("It could hurt someone.", "It is not safe or fair.", "It is against the law.")
UNSURE = ("I do not know.", "I have no idea.")
LOOKUP = "Let me look that up."

REVIEW_REQUEST = "Review the answer."
# System turns and what they ask of the style; the built-in model is trained to follow them.
SYSTEM_TURNS = {
    "You are Pip, the helper of the town.": {},
    "You are Pip. Answer briefly.": {"fillers": (1.0, 0.0, 0.0, 0.0, 0.0), "close": 0.1},
    "You are Pip. Be polite.": {"polite": 0.9, "rude": 0.0, "close": 0.6},
    "You are Pip. Be polite and brief.": {"fillers": (1.0, 0.0, 0.0, 0.0, 0.0), "polite": 0.9, "rude": 0.0},
}
