/* Nothing to call: see unicode_names.c. */
