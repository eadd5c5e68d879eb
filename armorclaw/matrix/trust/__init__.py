"""Whom an account trusts, and who may trust it: cross-signing, verification with a person, unverified devices."""
