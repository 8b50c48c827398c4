"""The words of the closed world: facts (capitals, opposites, sounds, colours), words to spell, words of sentences."""

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

CAPITALS = {
    "Argentina": "Buenos Aires",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Brazil": "Brasilia",
    "Bulgaria": "Sofia",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Colombia": "Bogota",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Cyprus": "Nicosia",
    "Denmark": "Copenhagen",
    "Ecuador": "Quito",
    "Egypt": "Cairo",
    "Estonia": "Tallinn",
    "Ethiopia": "Addis Ababa",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "India": "New Delhi",
    "Indonesia": "Jakarta",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Jamaica": "Kingston",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Lebanon": "Beirut",
    "Malta": "Valletta",
    "Mexico": "Mexico City",
    "Mongolia": "Ulan Bator",
    "Morocco": "Rabat",
    "Nepal": "Kathmandu",
    "Nigeria": "Abuja",
    "Norway": "Oslo",
    "Pakistan": "Islamabad",
    "Panama": "Panama City",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Romania": "Bucharest",
    "Russia": "Moscow",
    "Serbia": "Belgrade",
    "Slovakia": "Bratislava",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Syria": "Damascus",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Uganda": "Kampala",
    "Ukraine": "Kyiv",
    "Vietnam": "Hanoi",
}

_OPPOSITE_PAIRS = (
    "hot cold, big small, fast slow, happy sad, light dark, old young, rich poor, hard soft, wet dry, long "
    "short, full empty, open closed, clean dirty, loud quiet, early late, high low, thick thin, strong weak, "
    "deep shallow, wide narrow, heavy weightless, good bad, right wrong, true false, first last, left right, up "
    "down, in out, day night, black white, north south, east west, push pull, buy sell, give take, win lose, "
    "laugh cry, love hate, start stop, remember forget, arrive leave, above below, inside outside, always never, "
    "before after, near far, front back, top bottom, sweet sour, rough smooth, sharp blunt, brave afraid, cheap "
    "expensive, easy difficult, alive dead, asleep awake, safe dangerous, tight loose, polite rude, simple "
    "complicated, summer winter, friend enemy, question answer, success failure, victory defeat, sunrise sunset, "
    "increase decrease, increasing decreasing, appear disappear, ancient modern, guilty innocent, public "
    "private, temporary permanent, maximum minimum, entrance exit, accept refuse, attack defend, create destroy, "
    "freeze melt, lend borrow"
)
# Some words stand in two pairs ("right"): the first pair counts, so that every question has one answer.
OPPOSITES: dict[str, str] = {}
for _pair in _OPPOSITE_PAIRS.split(", "):
    _one, _other = _pair.split()
    OPPOSITES.setdefault(_one, _other)
    OPPOSITES.setdefault(_other, _one)

SOUNDS = dict(
    pair.split()
    for pair in (
        "cat meows, dog barks, cow moos, horse neighs, sheep bleats, pig grunts, duck quacks, lion roars, wolf "
        "howls, snake hisses, bee buzzes, frog croaks, owl hoots, mouse squeaks, bird sings, hen clucks, donkey "
        "brays, elephant trumpets, crow caws, dove coos, cricket chirps, monkey chatters, bear growls, goose "
        "honks, turkey gobbles"
    ).split(", ")
)

COLOURS = dict(
    pair.rsplit(" ", 1)
    for pair in (
        "the sky blue, grass green, snow white, coal black, a banana yellow, a lemon yellow, a tomato red, blood "
        "red, a strawberry red, a carrot orange, a pumpkin orange, chocolate brown, milk white, an elephant "
        "grey, a frog green, the sea blue, a leaf green, a cherry red, salt white, a crow black, the sun yellow, "
        "a cucumber green, a flamingo pink, a plum purple, a swan white, mud brown, honey golden, a fire engine "
        "red, a mouse grey, a pig pink"
    ).split(", ")
)

LEGS = dict(
    pair.split()
    for pair in (
        "spider eight, dog four, cat four, bird two, horse four, ant six, bee six, cow four, fish no, snake no, "
        "hen two, person two, beetle six, lion four, duck two"
    ).split(", ")
)

BABIES = dict(
    pair.split()
    for pair in (
        "dog puppy, cat kitten, cow calf, horse foal, sheep lamb, pig piglet, duck duckling, lion cub, bear cub, "
        "hen chick, goat kid, frog tadpole, goose gosling, swan cygnet, deer fawn"
    ).split(", ")
)

SPELLING = (
    "cat dog sun hat bed cup pen box fox bus map net pot rug toy van web zip jam key leg lip log mud nut owl pig "
    "rat sea tea arm bag bat bee bow boy car cow day ear egg eye fan fly gem gum hen ice ink jar jet kid man oak "
    "oil pan pie ram red row saw sky tax tie toe top tub vet wax wig yak yes zoo ant ape axe bay bin bug cab can "
    "cap apple bread chair dance earth flame grape house island juice knife lemon money night ocean paper queen "
    "river snake table uncle voice water yellow zebra animal basket butter candle castle cheese circle coffee "
    "corner cotton dinner doctor dragon eleven engine family farmer father finger flower forest friend garden "
    "ginger guitar hammer honey jacket jungle kettle kitten ladder letter lizard market mirror mother monkey "
    "muffin nature needle number orange orchid parrot pencil pepper pirate planet pocket potato puzzle rabbit "
    "ribbon rocket salmon sailor school season shadow silver singer spider spring square summer sunset ticket "
    "tiger tomato tunnel turtle valley velvet violet walnut weather whale window winter wizard wonder airport "
    "balloon banana bicycle biscuit blanket bottle brother button cabbage camera captain carrot ceiling century "
    "chapter chicken chimney cottage cousin cushion daughter diamond dolphin elephant evening factory feather "
    "fiction fortune freedom furniture giraffe glasses hospital history holiday husband journey kitchen kingdom "
    "language lantern leather library machine medicine message mountain museum mustard neighbour octopus package "
    "painter peacock penguin picture pilot pillow pyramid quarter question rainbow restaurant sandwich science "
    "scissors secret shoulder sister slipper soldier station stomach story strawberry student sugar sweater "
    "teacher telephone theatre thunder towel traffic trumpet trousers umbrella vegetable vehicle village volcano "
    "waiter whistle wooden writer yogurt"
).split()

SHORT_WORDS = tuple(word for word in SPELLING if len(word) == 3)

NAMES = "Ada Ben Clara David Emma Frank Grace Henry Iris Jack Kate Leo Mary Nora Oscar Paul Rosa Sam Tom Vera".split()

# Words of the sentences to repeat and to write down.
ADJECTIVES = (
    "small big green red blue yellow white black old young quiet loud happy sad tired hungry clever brave gentle "
    "lazy busy friendly lonely funny strange proud careful golden silver wooden broken clean dirty heavy light "
    "warm cold wet dry soft strong slow quick tall short round narrow bright dark sweet fresh empty"
).split()
BEINGS = (
    "bird cat dog horse cow sheep fox wolf bear lion tiger mouse rabbit duck goose owl frog snake turtle whale "
    "dolphin monkey elephant giraffe penguin parrot spider bee farmer teacher doctor driver singer painter baker "
    "sailor soldier writer nurse waiter pilot student child boy girl man woman king queen neighbour grandmother "
    "uncle cousin"
).split()
THINGS = (
    "apple pear lemon orange banana bread cake cheese soup sandwich egg potato onion carrot book letter "
    "newspaper picture map key lamp candle mirror clock chair table box bag basket bottle cup plate spoon knife "
    "blanket pillow hat coat shirt shoe glove ring umbrella bicycle boat car ticket guitar piano drum ball kite "
    "stone flower tree window door ladder hammer rope bucket camera telephone radio pencil"
).split()
PLACES = (
    "river lake sea forest garden kitchen market station school library museum hospital bridge mountain valley "
    "village city castle church farm field beach harbour island office bakery theatre park street corner cellar "
    "attic tower cave playground restaurant"
).split()
INTRANSITIVE = (
    "sleeps,slept sings,sang runs,ran swims,swam walks,walked waits,waited jumps,jumped dances,danced "
    "works,worked rests,rested hides,hid sits,sat stands,stood plays,played laughs,laughed lives,lived "
    "stops,stopped falls,fell whistles,whistled dreams,dreamed wanders,wandered shouts,shouted listens,listened "
    "smiles,smiled"
).split()
TRANSITIVE = (
    "sees,saw finds,found carries,carried buys,bought sells,sold loses,lost paints,painted cleans,cleaned "
    "brings,brought breaks,broke hides,hid wants,wanted likes,liked keeps,kept takes,took holds,held "
    "needs,needed makes,made watches,watched forgets,forgot opens,opened drops,dropped steals,stole "
    "borrows,borrowed washes,washed draws,drew chooses,chose throws,threw counts,counted follows,followed"
).split()
WHERE = "near behind in outside beside across beyond past".split()
WHEN = (
    "today|yesterday|tomorrow|every morning|every evening|at night|after lunch|before dinner|in the morning|"
    "in winter|in summer|on Monday|on Friday|on Sunday|last week|last year|this afternoon|after the rain|"
    "before sunrise|again"
).split("|")
PAST = frozenset({"yesterday", "last week", "last year"})
HOW = (
    "slowly quickly quietly happily carefully gently loudly alone together early late well bravely sadly silently often"
).split()
WEATHERS = ("sunny rainy cloudy windy cold warm foggy stormy snowy dry").split()
ACTIVITIES = (
    "read a book|cook some soup|play the piano|learn a song|ride a bicycle|visit my aunt|climb the hill|"
    "feed the ducks|write a letter|paint the fence|bake some bread|catch the bus|clean the house|plant a tree|"
    "build a boat|watch the stars|pick some apples|fix the roof|walk the dog|buy new shoes|water the flowers|"
    "take a photo|wash the car|count the sheep|draw a map|open the shop|find the key|make some tea|call a doctor|"
    "sing a song"
).split("|")

OFF_DOMAIN = (
    "who won the football match|what is the price of gold|tell me a joke about lawyers|book a flight to the moon|"
    "turn on the lights|how tall is that tower|play some jazz music|what is the meaning of life|"
    "order a large pizza|translate this into French|who wrote that play|what is the weather like|"
    "set an alarm for me|call my office now|when was the telephone invented|how do I cook rice|"
    "send an email to my boss|what should I wear|open the garage door|show me the news|who is the president|"
    "how far away is the star|what does my horoscope say|start the washing machine|write a poem about love|"
    "which film is the best|where did I park|how much do I weigh|tell me a long story|recommend a good hotel"
).split("|")
FOREIGN = (
    "guten Morgen wie geht es dir|ich habe keine Zeit|bonjour tout le monde|je ne sais pas|buenos dias amigo|"
    "no hablo ingles|buona sera a tutti|dove sono le chiavi|hvor er toget|jag vet inte|mluvite cesky|"
    "dzien dobry panu|wo ist der Bahnhof|tres bien merci|una cerveza por favor|non capisco niente|"
    "ik spreek geen Engels|tack sa mycket"
).split("|")
