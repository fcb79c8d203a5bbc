"""Running again only what depends on a fault: which values it reaches, which clean ones are kept, when it is sound."""

from fitact_fx.campaigns.suffix.suffixes import UNCHANGED, Suffixes

__all__ = ["UNCHANGED", "Suffixes"]
