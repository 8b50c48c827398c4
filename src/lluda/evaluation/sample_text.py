"""A stretch of ordinary text, for comparisons that need a model to know what comes next."""

SAMPLE_TEXT = (
    "A lighthouse is a tower with a bright lamp at the top. It stands on a cliff, an island or a harbour wall, and "
    "tells sailors where the land begins. Before there were electric lamps, keepers lived in these towers with their "
    "families. Every evening they climbed the stairs, filled the lamp with oil, cleaned the glass and lit the wick. "
    "During storms they stayed awake all night, because a lamp that went out could cost a ship and its crew.\n\n"
    "Each lighthouse has its own pattern of flashes. A captain who counts one long flash and two short ones can look "
    "the pattern up in a list and know exactly which tower it is. In fog, when no light can be seen, a horn is used "
    "instead. Today most lighthouses run on their own, and ships find their way by satellite, but many towers are "
    "still kept in good repair. People visit them for the view, for the history, and because a light that shines for "
    "strangers is a friendly thing to build.\n"
)
