// PEFTSwift
