"""Shadow paging: guests that have page tables of their own.

The guest's tables are shadowed: a shadow page stands for one table of the guest and translates what that table does,
straight to host frames. What the guest writes into its tables is seen by write protection, by an unsync page that is
read again at the next flush the guest asks for, or not at all until then.
"""
