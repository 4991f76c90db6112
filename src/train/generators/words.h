// Words that generators make sentences of. All of them are plain English and ours.
#pragma once

#include <string_view>

namespace drover::words {

inline constexpr std::string_view kNames[] = {
    "Anna",  "Ben",   "Clara", "David", "Emma",  "Felix", "Grace", "Henry", "Ida",  "Jack",
    "Kate",  "Leo",   "Mia",   "Noah",  "Olga",  "Paul",  "Rosa",  "Sam",   "Tina", "Victor",
    "Wendy", "Oscar", "Julia", "Simon", "Alice", "Peter", "Laura", "Martin"};

inline constexpr std::string_view kThings[] = {
    "ball", "book", "cup",    "hat",  "key",  "lamp",  "box",    "coat", "bell",  "map",
    "boat", "drum", "basket", "coin", "kite", "spoon", "ladder", "rope", "clock", "candle",
    "shoe", "bag",  "pen",    "ring", "jar",  "chair", "brush",  "knife"};

inline constexpr std::string_view kPlaces[] = {"garden",  "kitchen", "school", "park",    "market",
                                               "library", "station", "forest", "harbour", "barn",
                                               "bakery",  "museum",  "tower",  "cellar"};

inline constexpr std::string_view kColours[] = {"red",    "blue",   "green", "yellow",
                                                "black",  "white",  "brown", "grey",
                                                "orange", "purple", "pink",  "golden"};

inline constexpr std::string_view kQualities[] = {
    "old",   "new",  "small", "large", "heavy", "light",  "round", "broken", "clean", "dusty",
    "quiet", "loud", "cheap", "rare",  "soft",  "hard",   "wet",   "dry",    "tall",  "narrow",
    "red",   "blue", "green", "black", "white", "yellow", "brown", "silver", "iron",  "wooden"};

inline constexpr std::string_view kSyllables[] = {"al",  "bar", "cor", "den", "el",  "fen", "gar",
                                                  "hol", "in",  "jas", "kel", "lor", "mar", "nor",
                                                  "os",  "pel", "qui", "ran", "sol", "tam", "ur",
                                                  "ven", "wil", "yar", "zan", "bri", "dro", "fle"};

}  // namespace drover::words
