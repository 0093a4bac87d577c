"""Hashtags of the simulated world, and the words their captions are made of."""

HASHTAG_WORDS = {
    "#ramen": "noodles broth tonkotsu miso slurp chashu bowl shoyu",
    "#skate": "kickflip ollie board ramp deck grind park halfpipe",
    "#chess": "gambit checkmate rook endgame bishop blitz opening knight",
    "#sourdough": "starter crumb loaf proofing flour crust levain bake",
    "#bouldering": "crux slab chalk beta dyno crimp boulder send",
    "#kittens": "purr whiskers paws nap meow fluffy litter mittens",
    "#puppies": "fetch wag leash zoomies bark treats belly pup",
    "#astronomy": "nebula telescope saturn galaxy eclipse comet orbit moon",
    "#origami": "fold crane paper crease pleat dragon square tessellation",
    "#karaoke": "chorus mic duet ballad sing lyrics stage encore",
    "#drums": "snare groove fill cymbal beat rudiment kit tempo",
    "#salsa": "spin partner footwork rhythm dance turn clave floor",
    "#thrift": "vintage denim haul jacket find rack outfit corduroy",
    "#nails": "gel polish glitter manicure almond chrome topcoat art",
    "#gardening": "compost seedling tomato prune soil bloom mulch harvest",
    "#woodwork": "chisel dovetail walnut joinery plane oak sawdust clamp",
    "#lego": "brick minifig set build castle studs instructions modular",
    "#retrogaming": "pixel cartridge console speedrun arcade boss joystick level",
    "#football": "goal dribble derby keeper header penalty striker pitch",
    "#marathon": "pace splits miles finisher taper stride training race",
    "#yoga": "flow pose breath stretch mat balance asana warrior",
    "#surf": "swell barrel reef longboard wave paddle lineup tide",
    "#vanlife": "campervan road solar bunk dawn trail sunset miles",
    "#trains": "locomotive rail station steam timetable sleeper platform gauge",
    "#coffee": "espresso latte crema grind roast pourover beans barista",
    "#magic": "card trick reveal shuffle vanish coin illusion wand",
    "#standup": "joke crowd punchline heckler set laugh mic bit",
    "#history": "empire ruins castle archive king battle map century",
    "#watercolor": "wash pigment brush sketch palette paper bloom tint",
    "#robotics": "servo gripper sensor motor code arm rover firmware",
}
HASHTAGS = tuple(HASHTAG_WORDS)
# fmt: off
COMMON_WORDS = [
    "wait", "for", "it", "today", "my", "first", "try", "this", "one", "so", "good", "watch", "until", "end",
    "part", "two", "how", "why", "never", "again", "tutorial", "easy", "best", "fail", "win", "pov", "when",
    "friends", "said", "day", "night", "new", "little", "just", "real", "look",
]
# fmt: on
