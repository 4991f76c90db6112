"""A small corpus, and questions that repeat words of the document that answers them."""

DOCUMENTS = {
    "lighthouse": "The lighthouse of Skerry Point was built in 1874 from grey granite. Its lamp can be "
    "seen from nineteen miles away on a clear night.",
    "bread": "To bake rye bread, mix the flour with sourdough and water, let the dough rest for twelve "
    "hours, and bake it in a hot oven.",
    "bees": "A colony of honey bees has one queen and thousands of workers. The workers dance to tell "
    "each other where flowers are.",
    "chess": "In chess the bishop moves diagonally and the rook moves in straight lines. The game ends "
    "when the king is checkmated.",
    "volcano": "The volcano erupted in the spring. Lava flowed down the slope and ash covered the "
    "villages for weeks.",
    "invoice": "Invoices are paid within thirty days. After that, the accounting department sends a "
    "reminder and adds a fee of two percent.",
}
QUESTIONS = {
    "lighthouse": "From how many miles away can the lamp of the lighthouse of Skerry Point be seen?",
    "bread": "How long does the dough of rye bread rest before it goes into the hot oven?",
    "bees": "How do the workers of a colony of honey bees tell each other where flowers are?",
    "chess": "In chess, how does the bishop move, and how does the rook move?",
    "volcano": "What covered the villages when the volcano erupted and the lava flowed down?",
    "invoice": "Which fee does the accounting department add to invoices after thirty days?",
}
