"""The direct MMU of v6.1 and v6.12 as far as a replay needs it: facts B.1 to B.37 of the replay contract, in
Python.

Pages under two-dimensional paging through the shadow-page code, and of guests without paging. It is driven by
the inputs of a trace and prints each predicted line as it happens. Standard library only, no scenario
language: as soon as the core has the profiles v6.1 and v6.12, the translator can drive that instead, and this
becomes its second opinion.

words (`spte`) -> nouns (`shadow_pages`, `memslots`, `residency`) -> verbs (`vm`, `fault`, `updates`).
"""
